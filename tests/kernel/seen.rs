//! What the standard tools say of a namespace: never our own decoders.

use std::collections::BTreeSet;

use serde_json::Value;
use testbed::netns::Netns;

/// The lines of `ipvsadm -Sn`, sorted.
pub(crate) fn ipvsadm(netns: &Netns) -> BTreeSet<String> {
    lines(&netns.sh("ipvsadm -Sn").unwrap())
}

/// Non-empty lines, sorted, each without blanks at its ends.
pub(crate) fn lines(text: &str) -> BTreeSet<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Destinations of the local routes with kube-ipvs's protocol number, by `ip -j route`.
pub(crate) fn routes(netns: &Netns) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for family in ["-4", "-6"] {
        let text = netns
            .sh(&format!("ip -j -N {family} route show table local proto 163"))
            .unwrap();
        for route in array(&text) {
            assert_eq!(route["dev"], "lo", "{route}");
            // `-N` prints types as numbers; 2 = RTN_LOCAL.
            assert!(route["type"] == "2" || route["type"] == "local", "{route}");
            found.insert(route["dst"].as_str().unwrap().to_owned());
        }
    }
    found
}

/// Addresses of `kube-ipvs0` with their prefix lengths, by `ip -j addr`; without the link-local one of its own.
pub(crate) fn addresses(netns: &Netns) -> BTreeSet<String> {
    let text = netns.sh("ip -j addr show dev kube-ipvs0").unwrap();
    array(&text)
        .iter()
        .flat_map(|link| link["addr_info"].as_array().cloned().unwrap_or_default())
        .filter(|address| address["scope"] != "link")
        .map(|address| format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"]))
        .collect()
}

/// nft's listing of all tables, without what differs from time to time: handles, the order of tables and of elements.
pub(crate) fn ruleset(netns: &Netns) -> Value {
    let text = netns.sh("nft -j list ruleset").unwrap();
    let mut json = serde_json::from_str(&text).unwrap();
    strip(&mut json);
    // A table that is made anew comes last.
    let family = |object: &Value| {
        let mut inner = object.as_object().into_iter().flat_map(|object| object.values());
        inner.find_map(|inner| inner["family"].as_str().map(str::to_owned))
    };
    if let Some(objects) = json["nftables"].as_array_mut() {
        objects.sort_by_key(family);
    }
    json
}

fn strip(json: &mut Value) {
    match json {
        Value::Object(fields) => {
            for name in ["handle", "metainfo", "expires", "comment"] {
                fields.remove(name);
            }
            fields.values_mut().for_each(strip);
            if let Some(Value::Array(elements)) = fields.get_mut("elem") {
                elements.sort_by_key(ToString::to_string);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

fn array(text: &str) -> Vec<Value> {
    if text.trim().is_empty() {
        Vec::new()
    } else {
        serde_json::from_str(text).unwrap()
    }
}
