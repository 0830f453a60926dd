//! `/statusz` and `/flagz` (KEP-4827, KEP-4828): text for people, and objects of the group `config.k8s.io` for programs that
//! name one in `Accept`, such as `application/json;v=v1beta1;g=config.k8s.io;as=Statusz`.
//!
//! The rules are those of Kubernetes 1.37 (apiserver, pkg/server/statusz and flagz): no `Accept` and `*/*` mean text; an
//! object comes as JSON or YAML; all else is 406. CBOR is behind a gate that is off upstream, too.

use std::cmp::Reverse;
use std::fmt::Write;

use http::header::HeaderValue;
use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Answer, JSON, TEXT, answer};
use crate::config::KUBERNETES_RELEASE;

/// kube-proxy's name, by which tools know the component.
const COMPONENT: &str = "kube-proxy";
const GROUP: &str = "config.k8s.io";
const NOT_FOR_MACHINES: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";

/// What a page tells, in both of its forms.
pub(super) trait Page {
    /// Kind of its object.
    const KIND: &'static str;
    /// Name of its path.
    const NAME: &'static str;

    /// Lines below the heading.
    fn text(&self) -> String;

    /// Fields of the object, beside its kind, version and name.
    fn fields(&self) -> Map<String, Value>;
}

/// `/flagz`: name and value of every flag.
pub(super) struct Flagz<'a>(pub(super) &'a [(String, String)]);

impl Page for Flagz<'_> {
    const KIND: &'static str = "Flagz";
    const NAME: &'static str = "flagz";

    fn text(&self) -> String {
        let mut flags: Vec<_> = self.0.iter().collect();
        flags.sort_unstable();
        flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    }

    fn fields(&self) -> Map<String, Value> {
        let flags: Map<_, _> = self
            .0
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str().into()))
            .collect();
        Map::from_iter([("flags".to_owned(), flags.into())])
    }
}

/// `/statusz`: since when, which version, what else there is to ask.
pub(super) struct Statusz {
    pub(super) start: Timestamp,
    pub(super) now: Timestamp,
    /// Other paths of this server, sorted.
    pub(super) paths: Vec<&'static str>,
}

impl Statusz {
    /// Seconds since the start; 0 where the clock was set back.
    fn up(&self) -> i64 {
        self.now.as_second().saturating_sub(self.start.as_second()).max(0)
    }
}

impl Page for Statusz {
    const KIND: &'static str = "Statusz";
    const NAME: &'static str = "statusz";

    /// Upstream's lines, without that of Go's version.
    fn text(&self) -> String {
        let (start, up) = (self.start.strftime("%a %b %e %H:%M:%S UTC %Y"), self.up());
        let version = env!("CARGO_PKG_VERSION");
        format!(
            "\nStarted: {start}\nUp: {} hr {:02} min {:02} sec\nBinary version: {version}\nEmulation version: {KUBERNETES_RELEASE}\nPaths: {}\n",
            up / 3600,
            up / 60 % 60,
            up % 60,
            self.paths.join(" "),
        )
    }

    fn fields(&self) -> Map<String, Value> {
        let fields = json!({
            "startTime": self.start.to_string(),
            "uptimeSeconds": self.up(),
            // The field is required, and this program is not of Go.
            "goVersion": "",
            "binaryVersion": env!("CARGO_PKG_VERSION"),
            "emulationVersion": KUBERNETES_RELEASE,
            "paths": self.paths,
        });
        match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }
}

/// The answer, in the form that a request asks for.
pub(super) fn answer_page<P: Page>(headers: &HeaderMap, page: &P) -> Answer {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    match negotiate(accept.unwrap_or_default(), P::KIND) {
        None => not_acceptable(),
        Some(Form::Text) => {
            let mut text = format!("\n{COMPONENT} {}\n{NOT_FOR_MACHINES}\n", P::NAME);
            // Writing into a String does not fail.
            let _ = write!(text, "{}", page.text());
            answer(StatusCode::OK, TEXT, text)
        }
        Some(Form::Object(encoding, version)) => object(page, encoding, version),
    }
}

/// A form of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Object(Encoding, Version),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Json,
    Yaml,
}

impl Encoding {
    fn media_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => "application/yaml",
        }
    }
}

/// Both have the same fields; the first one is deprecated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1alpha1,
    V1beta1,
}

impl Version {
    fn name(self) -> &'static str {
        match self {
            Self::V1alpha1 => "v1alpha1",
            Self::V1beta1 => "v1beta1",
        }
    }
}

fn object<P: Page>(page: &P, encoding: Encoding, version: Version) -> Answer {
    let mut fields = page.fields();
    fields.insert("kind".to_owned(), P::KIND.into());
    fields.insert("apiVersion".to_owned(), format!("{GROUP}/{}", version.name()).into());
    fields.insert("metadata".to_owned(), json!({ "name": COMPONENT }));
    let fields = Value::Object(fields);
    let body = match encoding {
        Encoding::Json => format!("{fields}\n"),
        // Strings, numbers and lists alone: it can be written.
        Encoding::Yaml => serde_saphyr::to_string(&fields).unwrap_or_default(),
    };
    let (media_type, kind, version_name) = (encoding.media_type(), P::KIND, version.name());
    let mut answer = answer(StatusCode::OK, encoding.media_type(), body);
    let mut header = |name, text: String| {
        if let Ok(value) = HeaderValue::from_str(&text) {
            answer.headers_mut().insert(name, value);
        }
    };
    header(
        header::CONTENT_TYPE,
        format!("{media_type};g={GROUP};v={version_name};as={kind}"),
    );
    if version == Version::V1alpha1 {
        let page = P::NAME;
        header(
            header::WARNING,
            format!("299 - \"This version of the {page} endpoint is deprecated. Please use a newer version.\""),
        );
    }
    answer
}

fn not_acceptable() -> Answer {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "only the following media types are accepted: application/json, application/yaml, text/plain",
        "reason": "NotAcceptable",
        "code": StatusCode::NOT_ACCEPTABLE.as_u16(),
    });
    answer(StatusCode::NOT_ACCEPTABLE, JSON, format!("{status}\n"))
}

/// A media range of `Accept` (RFC 9110, 12.5.1).
struct Range<'a> {
    kind: &'a str,
    subkind: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    /// Thousandths.
    quality: u16,
}

impl<'a> Range<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (kind, subkind) = match parts.next()? {
            "*" => ("*", "*"),
            range => range.split_once('/')?,
        };
        let mut range = Self {
            kind,
            subkind,
            parameters: Vec::new(),
            quality: 1000,
        };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim() {
                "q" => range.quality = thousandths(value.trim()),
                name => range.parameters.push((name, value.trim())),
            }
        }
        Some(range)
    }

    fn takes(&self, kind: &str, subkind: &str) -> bool {
        [(self.kind, kind), (self.subkind, subkind)]
            .iter()
            .all(|(range, is)| *range == "*" || range == is)
    }

    /// The last one of a parameter, as in Go's map.
    fn parameter(&self, name: &str) -> Option<&'a str> {
        let same = self.parameters.iter().rev().find(|(given, _)| *given == name);
        same.map(|(_, value)| *value)
    }

    /// What it asks for, where this page can be that.
    fn form(&self, kind: &str) -> Option<Form> {
        // Streams and versions of a server are of the API server.
        if ["stream", "sv"]
            .iter()
            .any(|name| self.parameter(name).is_some_and(|value| !value.is_empty()))
        {
            return None;
        }
        let target = ["g", "v", "as"].map(|name| self.parameter(name));
        let version = match target {
            [None, None, None] => None,
            [Some(GROUP), Some("v1alpha1"), Some(named)] if named == kind => Some(Version::V1alpha1),
            [Some(GROUP), Some("v1beta1"), Some(named)] if named == kind => Some(Version::V1beta1),
            _ => return None,
        };
        match version {
            None => self.takes("text", "plain").then_some(Form::Text),
            Some(version) if self.takes("application", "json") => Some(Form::Object(Encoding::Json, version)),
            Some(version) if self.takes("application", "yaml") => Some(Form::Object(Encoding::Yaml, version)),
            Some(_) => None,
        }
    }
}

/// `0.8` is 800; what is no number is 0, as to Go.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and 1000"
)]
fn thousandths(text: &str) -> u16 {
    let quality = text.parse::<f64>().unwrap_or_default();
    (quality.clamp(0.0, 1.0) * 1000.0) as u16
}

/// The form that a client likes best; blank = text.
fn negotiate(accept: &str, kind: &str) -> Option<Form> {
    if accept.trim().is_empty() {
        return Some(Form::Text);
    }
    let mut ranges: Vec<_> = accept.split(',').filter_map(Range::read).collect();
    ranges.retain(|range| range.quality > 0);
    ranges.sort_by_key(|range| (Reverse(range.quality), range.kind == "*", range.subkind == "*"));
    ranges.iter().find_map(|range| range.form(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &str = "g=config.k8s.io;v=v1beta1;as=Statusz";

    fn asking(accept: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_str(accept).unwrap())])
    }

    #[test]
    fn the_form_is_what_the_client_likes_best_of_what_there_is() {
        let beta = |encoding| Some(Form::Object(encoding, Version::V1beta1));
        let check = |accept: &str, expect| assert_eq!(negotiate(accept, "Statusz"), expect, "{accept}");
        for accept in [
            "",
            "  ",
            "*/*",
            "*",
            "text/plain",
            "text/*",
            "text/html, */*;q=0.8",
            "text/plain;charset=utf-8",
        ] {
            check(accept, Some(Form::Text));
        }
        check(&format!("application/json;{OBJECT}"), beta(Encoding::Json));
        check(&format!("application/yaml; {OBJECT}"), beta(Encoding::Yaml));
        check(&format!("application/*;{OBJECT}"), beta(Encoding::Json));
        check(&format!("*/*;{OBJECT}"), beta(Encoding::Json));
        check(
            "application/json;as=Statusz;v=v1alpha1;g=config.k8s.io",
            Some(Form::Object(Encoding::Json, Version::V1alpha1)),
        );
        check(
            &format!("text/plain;q=0.5,application/json;{OBJECT}"),
            beta(Encoding::Json),
        );
        check(&format!("text/plain,application/json;{OBJECT};q=0.5"), Some(Form::Text));
        check(
            &format!("application/json;{OBJECT};q=0,text/plain;q=0.1"),
            Some(Form::Text),
        );
        for accept in [
            "application/json",
            "application/*",
            "text/html",
            "text/plain;q=0",
            "text/plain;as=Statusz",
            "application/json;v=v1beta1;as=Statusz",
            "application/json;g=config.k8s.io;v=v1;as=Statusz",
            "application/json;g=config.k8s.io;v=v1beta1;as=Flagz",
            &format!("application/json;{OBJECT};stream=watch"),
            &format!("application/cbor;{OBJECT}"),
            &format!("application/vnd.kubernetes.protobuf;{OBJECT}"),
            "nonsense",
            ",;,",
        ] {
            check(accept, None);
        }
    }

    fn body(answer: Answer) -> String {
        use http_body_util::BodyExt;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = runtime.block_on(answer.into_body().collect()).unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    fn status() -> Statusz {
        Statusz {
            start: Timestamp::from_second(1_764_290_000).unwrap(),
            now: Timestamp::from_second(1_764_297_265).unwrap(),
            paths: vec!["/configz", "/metrics"],
        }
    }

    #[test]
    fn the_status_as_text_and_as_an_object() {
        let text = answer_page(&HeaderMap::new(), &status());
        assert_eq!(text.headers()[header::CONTENT_TYPE], TEXT);
        assert_eq!(
            body(text),
            format!(
                "\nkube-proxy statusz\n{NOT_FOR_MACHINES}\n\nStarted: Fri Nov 28 00:33:20 UTC 2025\nUp: 2 hr 01 min 05 sec\n\
                 Binary version: {}\nEmulation version: 1.37\nPaths: /configz /metrics\n",
                env!("CARGO_PKG_VERSION")
            )
        );
        let object = answer_page(&asking(&format!("application/json;{OBJECT}")), &status());
        assert_eq!(
            object.headers()[header::CONTENT_TYPE],
            "application/json;g=config.k8s.io;v=v1beta1;as=Statusz"
        );
        assert!(!object.headers().contains_key(header::WARNING));
        let expect = json!({
            "kind": "Statusz",
            "apiVersion": "config.k8s.io/v1beta1",
            "metadata": {"name": "kube-proxy"},
            "startTime": "2025-11-28T00:33:20Z",
            "uptimeSeconds": 7265,
            "goVersion": "",
            "binaryVersion": env!("CARGO_PKG_VERSION"),
            "emulationVersion": "1.37",
            "paths": ["/configz", "/metrics"],
        });
        assert_eq!(serde_json::from_str::<Value>(&body(object)).unwrap(), expect);
        let yaml = answer_page(&asking(&format!("application/yaml;{OBJECT}")), &status());
        assert_eq!(serde_saphyr::from_str::<Value>(&body(yaml)).unwrap(), expect);
        // A clock that was set back.
        let back = Statusz {
            now: Timestamp::from_second(0).unwrap(),
            ..status()
        };
        assert_eq!(back.up(), 0);
    }

    #[test]
    fn flags_as_text_and_as_an_object() {
        let flags = [("v", "2"), ("config", "x=y")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let page = Flagz(&flags);
        assert_eq!(
            body(answer_page(&HeaderMap::new(), &page)),
            format!("\nkube-proxy flagz\n{NOT_FOR_MACHINES}\nconfig=x=y\nv=2\n")
        );
        let old = answer_page(&asking("application/json;g=config.k8s.io;v=v1alpha1;as=Flagz"), &page);
        let warning = old.headers()[header::WARNING].to_str().unwrap();
        assert!(
            warning.starts_with("299 - \"This version of the flagz endpoint is deprecated."),
            "{warning}"
        );
        assert_eq!(
            serde_json::from_str::<Value>(&body(old)).unwrap(),
            json!({
                "kind": "Flagz",
                "apiVersion": "config.k8s.io/v1alpha1",
                "metadata": {"name": "kube-proxy"},
                "flags": {"config": "x=y", "v": "2"},
            })
        );
    }

    #[test]
    fn another_type_is_refused_with_a_status() {
        let refused = answer_page(&asking("application/json"), &Flagz(&[]));
        assert_eq!(refused.status(), StatusCode::NOT_ACCEPTABLE);
        let status: Value = serde_json::from_str(&body(refused)).unwrap();
        assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(406)));
    }
}
