//! The name of this node, by kube-proxy's rule: the override, else the host's name; trimmed and lower-cased.

use anyhow::{Result, ensure};

/// # Errors
/// Where nothing is left of the name after trimming.
pub(crate) fn node_name(hostname_override: Option<&str>) -> Result<String> {
    let given = hostname_override.filter(|name| !name.is_empty());
    let host = rustix::system::uname();
    let name = given
        .unwrap_or_else(|| host.nodename().to_str().unwrap_or_default())
        .trim()
        .to_lowercase();
    ensure!(!name.is_empty(), "the node has no name: set --hostname-override");
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trimmed_and_lower_cased() {
        assert_eq!(node_name(Some(" Node-1 ")).unwrap(), "node-1");
        assert!(node_name(Some("  ")).is_err());
        let host = node_name(None).unwrap();
        assert_eq!(host, node_name(Some("")).unwrap());
        assert_eq!(host, host.to_lowercase());
    }
}
