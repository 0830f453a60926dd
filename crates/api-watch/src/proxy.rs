//! Which proxy leads to the API server, if any: the kubeconfig's, else that of the environment, as client-go reads both
//! (golang.org/x/net/http/httpproxy). kube reads `HTTPS_PROXY` alone, compares `NO_PROXY` with the proxy's address, and
//! reads neither in a pod.

use std::net::IpAddr;

use data_encoding::BASE64;
use http::uri::Authority;
use http::{HeaderValue, Uri};
use ipnet::IpNet;
use percent_encoding::percent_decode_str;

use crate::error::Error;

/// A proxy for all connections to the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) scheme: Scheme,
    /// Where it is, with its port and without who we are.
    pub(crate) uri: Uri,
    /// Name and password.
    pub(crate) user: Option<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    /// The connection to the proxy has TLS, with the authorities of the API server, as in client-go.
    Https,
    Socks5,
}

impl Proxy {
    /// `Proxy-Authorization` of a name and a password.
    pub(crate) fn authorization(&self) -> Option<HeaderValue> {
        let (name, password) = self.user.as_ref()?;
        let both = BASE64.encode(format!("{name}:{password}").as_bytes());
        HeaderValue::from_str(&format!("Basic {both}")).ok()
    }
}

/// The proxy for a server. What the kubeconfig names (`proxy-url`) is always used; the environment's not for `localhost`,
/// loopback addresses and what `NO_PROXY` holds.
///
/// # Errors
/// [`Error::Proxy`] where a proxy applies that cannot be used.
pub(crate) fn choose(
    server: &Uri,
    named: Option<&str>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Option<Proxy>, Error> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        return read(named, "proxy-url of the kubeconfig").map(Some);
    }
    let first = |names: [&'static str; 2]| {
        let mut values = names
            .map(|name| (name, environment(name).unwrap_or_default()))
            .into_iter();
        values.find(|(_, value)| !value.is_empty())
    };
    let names = match server.scheme_str() {
        Some("https") => ["HTTPS_PROXY", "https_proxy"],
        _ => ["HTTP_PROXY", "http_proxy"],
    };
    let no_proxy = first(["NO_PROXY", "no_proxy"]).map(|(_, value)| value);
    match first(names) {
        Some((name, value)) if !is_left_out(server, &no_proxy.unwrap_or_default()) => read(&value, name).map(Some),
        _ => Ok(None),
    }
}

fn read(text: &str, named_by: &'static str) -> Result<Proxy, Error> {
    // The text may hold a password, so it is not told.
    let refuse = |reason| Error::Proxy { named_by, reason };
    // `proxy:3128` is http://proxy:3128, as to Go.
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let uri: Uri = whole.parse().map_err(|_| refuse("is no URL"))?;
    let (scheme, name, port) = match uri.scheme_str() {
        Some("http") => (Scheme::Http, "http", 80),
        Some("https") => (Scheme::Https, "https", 443),
        Some("socks5" | "socks5h") => (Scheme::Socks5, "socks5", 1080),
        _ => return Err(refuse("has a scheme other than http, https and socks5")),
    };
    let (Some(authority), Some(host)) = (uri.authority(), uri.host()) else {
        return Err(refuse("names no host"));
    };
    let port = uri.port_u16().unwrap_or(port);
    let user = authority.as_str().rsplit_once('@').map(|(user, _)| {
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        let plain = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
        (plain(name), plain(password))
    });
    let place: Authority = format!("{host}:{port}").parse().map_err(|_| refuse("names no host"))?;
    let uri = Uri::builder().scheme(name).authority(place).path_and_query("/").build();
    Ok(Proxy {
        scheme,
        uri: uri.map_err(|_| refuse("is no URL"))?,
        user,
    })
}

/// The server is reached without a proxy: `useProxy` of Go's package.
fn is_left_out(server: &Uri, no_proxy: &str) -> bool {
    let host = server.host().unwrap_or_default().to_ascii_lowercase();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_https = server.scheme_str() == Some("https");
    let port = server.port_u16().unwrap_or(if is_https { 443 } else { 80 }).to_string();
    let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    let entries = no_proxy.split(',').map(|entry| entry.trim().to_ascii_lowercase());
    entries.into_iter().any(|entry| holds(&entry, host, address, &port))
}

/// An entry of `NO_PROXY`: `*`, a range, an address or a name with or without a port. A name holds those below it, and
/// itself where it begins neither with `.` nor with `*.`.
fn holds(entry: &str, host: &str, address: Option<IpAddr>, port: &str) -> bool {
    if entry == "*" {
        return true;
    }
    if let Ok(range) = entry.parse::<IpNet>() {
        return address.is_some_and(|address| range.contains(&address));
    }
    let (name, of_port) = split_port(entry);
    if of_port.is_some_and(|of_port| !of_port.is_empty() && of_port != port) {
        return false;
    }
    if let Ok(one) = name.parse::<IpAddr>() {
        return address == Some(one.to_canonical());
    }
    let name = name
        .strip_prefix('*')
        .filter(|rest| rest.starts_with('.'))
        .unwrap_or(name);
    match name.strip_prefix('.') {
        Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
        None => !name.is_empty() && (host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))),
    }
}

/// `net.SplitHostPort`: `name:port`, `[address]:port`; an IPv6 address without brackets has no port.
fn split_port(entry: &str) -> (&str, Option<&str>) {
    let plain = |name: &'_ str| name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).is_some();
    match entry.rsplit_once(':') {
        Some((name, port)) if plain(name) => (&name[1..name.len() - 1], Some(port)),
        Some((name, port)) if !name.contains(':') => (name, Some(port)),
        _ => (entry, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(server: &str, named: Option<&str>, environment: &[(&str, &str)]) -> Result<Option<Proxy>, Error> {
        let of = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        choose(&server.parse().unwrap(), named, of)
    }

    fn uri(server: &str, named: Option<&str>, environment: &[(&str, &str)]) -> String {
        let found = proxy(server, named, environment).unwrap();
        found.map_or_else(String::new, |proxy| proxy.uri.to_string())
    }

    /// Cases of golang.org/x/net/http/httpproxy/proxy_test.go, and of its documentation.
    #[test]
    fn f10_no_proxy_is_read_as_by_go() {
        let check = |host: &str, no_proxy: &str, proxied: bool| {
            let environment = [("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", no_proxy)];
            let found = uri(&format!("https://{host}"), None, &environment);
            assert_eq!(!found.is_empty(), proxied, "{host} with NO_PROXY={no_proxy}");
        };
        let list = "foobar.com, .barbaz.net, *.wildcard.io, 192.168.1.1, 192.168.1.2:81, 192.168.1.3:80, 10.0.0.0/30, 2001:db8::52:0:1, [2001:db8::52:0:2]:443, [2001:db8::52:0:3]:80, 2002:db8:a::45/64";
        for (host, proxied) in [
            ("localhost", false),
            ("127.0.0.1:6443", false),
            ("127.0.0.2", false),
            ("[::1]", false),
            ("[::2]", true),
            ("[2001:db8::52:0:1]", false),
            ("[2001:db8::52:0:2]", false),
            ("[2001:db8::52:0:2]:6443", true),
            ("[2001:db8::52:0:3]", true),
            ("[2002:db8:a::123]", false),
            ("[fe80::424b:c8be:1643:a1b6]", true),
            ("barbaz.net", true),
            ("www.barbaz.net", false),
            ("foobar.com", false),
            ("FOOBAR.com", false),
            ("www.foobar.com", false),
            ("foofoobar.com", true),
            ("baz.com", true),
            ("localhost.net", true),
            ("local.localhost", true),
            ("barbarbaz.net", true),
            ("wildcard.io", true),
            ("nested.wildcard.io", false),
            ("awildcard.io", true),
            ("192.168.1.1", false),
            ("192.168.1.2", true),
            ("192.168.1.2:81", false),
            ("192.168.1.3", true),
            ("192.168.1.4", true),
            ("10.0.0.2", false),
            ("10.0.0.4", true),
        ] {
            check(host, list, proxied);
        }
        check("example.com", "*", false);
        check("10.1.2.3", "a.b, *", false);
        for nothing in ["", " , ", ":", ":80", "[]", ".", "*."] {
            check("example.com", nothing, true);
        }
        // kubeadm's, in a cluster.
        check("10.96.0.1", ".svc,.cluster.local,10.96.0.0/12", false);
    }

    #[test]
    fn f10_the_proxy_is_the_kubeconfigs_or_that_of_the_scheme() {
        let both = [
            ("HTTPS_PROXY", "http://a:1"),
            ("https_proxy", "http://b:2"),
            ("HTTP_PROXY", "c"),
        ];
        assert_eq!(uri("https://example.com", None, &both), "http://a:1/");
        assert_eq!(uri("http://example.com", None, &both), "http://c:80/");
        assert_eq!(
            uri("https://example.com", None, &[("HTTPS_PROXY", ""), both[1]]),
            "http://b:2/"
        );
        assert_eq!(
            uri("https://example.com", None, &[("HTTP_PROXY", "c"), ("ALL_PROXY", "d")]),
            ""
        );
        let named = Some("https://d");
        assert_eq!(uri("https://example.com", named, &both), "https://d:443/");
        assert_eq!(uri("https://localhost", named, &[("NO_PROXY", "*")]), "https://d:443/");
        assert_eq!(uri("https://example.com", Some(""), &both), "http://a:1/");
        assert_eq!(
            uri("https://example.com", Some("[2001:db8::1]:3128"), &[]),
            "http://[2001:db8::1]:3128/"
        );
        let socks = proxy("https://example.com", Some("socks5h://me:p%40ss%3Aword@e"), &[])
            .unwrap()
            .unwrap();
        assert_eq!(
            (socks.scheme, socks.uri.to_string().as_str()),
            (Scheme::Socks5, "socks5://e:1080/")
        );
        assert_eq!(socks.user.as_ref().unwrap(), &("me".to_owned(), "p@ss:word".to_owned()));
        assert_eq!(socks.authorization().unwrap(), "Basic bWU6cEBzczp3b3Jk");
    }

    #[test]
    fn f10_what_is_no_proxy_is_told_without_its_password() {
        for wrong in [
            "ftp://me:secret@a",
            "http://",
            "http://me:secret@",
            "a b",
            "http://me:secret@a b",
        ] {
            let error = proxy("https://example.com", None, &[("HTTPS_PROXY", wrong)])
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("the proxy that HTTPS_PROXY names "), "{error}");
            assert!(!error.contains("secret"), "{error}");
            // Where it does not apply, it does no harm.
            let left_out = [("HTTPS_PROXY", wrong), ("NO_PROXY", "example.com")];
            assert_eq!(uri("https://example.com", None, &left_out), "");
        }
    }
}
