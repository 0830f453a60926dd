//! Names of API objects: cheap to clone, to hash and to print.

use std::fmt;
use std::sync::Arc;

/// `namespace/name` of an API object, or `name` alone where the kind has no namespace (Node).
///
/// Neither part can contain a slash (DNS-1123), so the text is the identity.
/// Ordering is by that text: the same everywhere and at every start.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(Arc<str>);

impl ObjectName {
    /// A name within a namespace.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// The name of an object whose kind has no namespace.
    pub fn cluster_scoped(name: &str) -> Self {
        Self(name.into())
    }

    /// The namespace; empty for an object whose kind has none.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name without its namespace.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
