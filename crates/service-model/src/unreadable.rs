//! Objects that exist and cannot be read (L18): which, and why.

use std::collections::BTreeMap;

use crate::event::Kind;
use crate::frontend::Rejection;
use crate::name::ObjectName;

/// Objects that cannot be read.
#[derive(Debug, Default)]
pub(crate) struct UnreadableObjects {
    objects: BTreeMap<(Kind, ObjectName), Rejection>,
    changed: bool,
}

impl UnreadableObjects {
    /// This one cannot be read; what was known of it as such is replaced.
    pub(crate) fn add(&mut self, rejection: Rejection) {
        let key = (rejection.kind, rejection.object.clone());
        self.changed |= self.objects.get(&key) != Some(&rejection);
        self.objects.insert(key, rejection);
    }

    /// This one can be read, or is gone.
    pub(crate) fn remove(&mut self, kind: Kind, object: &ObjectName) {
        if !self.objects.is_empty() {
            self.changed |= self.objects.remove(&(kind, object.clone())).is_some();
        }
    }

    /// Those of a kind for which this holds are forgotten.
    pub(crate) fn forget(&mut self, kind: Kind, mut which: impl FnMut(&ObjectName) -> bool) {
        let before = self.objects.len();
        self.objects.retain(|(of, object), _| *of != kind || !which(object));
        self.changed |= self.objects.len() != before;
    }

    /// All, by kind and name, where they are others than at the last call.
    pub(crate) fn take_change(&mut self) -> Option<Vec<Rejection>> {
        std::mem::take(&mut self.changed).then(|| self.objects.values().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Change, Event};
    use crate::object::{Node, Service};
    use crate::{Cluster, Config};

    fn cluster() -> Cluster {
        Cluster::new(Config::of_node("n1"))
    }

    fn unreadable(kind: Kind, name: &ObjectName) -> Event {
        Event::Unreadable(Rejection {
            kind,
            object: name.clone(),
            field: "spec".into(),
            reason: "is odd".into(),
        })
    }

    fn names(rejections: Option<Vec<Rejection>>) -> Option<Vec<String>> {
        rejections.map(|all| all.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_unreadable_object_is_told_once_and_stays_as_it_was() {
        let mut cluster = cluster();
        let name = ObjectName::new("d", "s");
        let mut service = Service::new(name.clone());
        service.cluster_ips.push([10, 0, 0, 1].into());
        let applied = || Event::Service(Change::Applied(service.clone()));
        cluster.apply(applied());
        let _ = cluster.take_touched();
        assert_eq!(cluster.take_unreadable(), None);
        for _ in 0..2 {
            cluster.extend([unreadable(Kind::Service, &name)]);
        }
        assert_eq!(
            names(cluster.take_unreadable()),
            Some(vec!["Service d/s: spec: is odd".to_owned()])
        );
        // Nothing is to be programmed anew, and nothing is to be told again.
        assert!(cluster.take_touched().is_empty());
        cluster.apply(unreadable(Kind::Service, &name));
        assert_eq!(cluster.take_unreadable(), None);
        cluster.apply(applied());
        assert_eq!(cluster.take_unreadable(), Some(Vec::new()));
        cluster.apply(unreadable(Kind::Service, &name));
        cluster.apply(Event::Service(Change::Deleted(name)));
        assert_eq!(cluster.take_unreadable(), Some(Vec::new()));
    }

    #[test]
    fn other_nodes_are_forgotten_and_this_one_is_not() {
        let mut cluster = cluster();
        let [this, other] = ["n1", "n2"].map(ObjectName::cluster_scoped);
        cluster.extend([unreadable(Kind::Node, &this), unreadable(Kind::Node, &other)]);
        cluster.apply(Event::OtherNodesForgotten);
        assert_eq!(
            names(cluster.take_unreadable()),
            Some(vec!["Node n1: spec: is odd".to_owned()])
        );
        let node = Node {
            name: this,
            zone: "".into(),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            deleting: false,
            taints: Vec::new(),
        };
        cluster.apply(Event::Node(Change::Applied(node)));
        assert_eq!(cluster.take_unreadable(), Some(Vec::new()));
    }
}
