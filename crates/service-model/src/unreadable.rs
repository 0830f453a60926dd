//! Objects that exist and cannot be read, as a whole or, of Nodes, in some fields (L18): which, and why.

use std::collections::BTreeMap;

use crate::event::Kind;
use crate::frontend::Rejection;
use crate::name::ObjectName;

/// Objects that cannot be read.
#[derive(Debug, Default)]
pub(crate) struct UnreadableObjects {
    objects: BTreeMap<(Kind, ObjectName), Vec<Rejection>>,
    changed: bool,
}

impl UnreadableObjects {
    /// This one cannot be read; what was known of it as such is replaced.
    pub(crate) fn add(&mut self, rejection: Rejection) {
        let object = rejection.object.clone();
        self.set(rejection.kind, &object, vec![rejection]);
    }

    /// What of this one cannot be read; nothing = it can be read, or is gone.
    pub(crate) fn set(&mut self, kind: Kind, object: &ObjectName, rejections: Vec<Rejection>) {
        if rejections.is_empty() && self.objects.is_empty() {
            return;
        }
        let key = (kind, object.clone());
        self.changed |= self.objects.get(&key).map_or(&[][..], Vec::as_slice) != rejections;
        if rejections.is_empty() {
            self.objects.remove(&key);
        } else {
            self.objects.insert(key, rejections);
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
        std::mem::take(&mut self.changed).then(|| self.objects.values().flatten().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Change, Event};
    use crate::object::{InvalidField, Node, Service};
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
            invalid: Vec::new(),
        };
        cluster.apply(Event::Node(Change::Applied(node)));
        assert_eq!(cluster.take_unreadable(), Some(Vec::new()));
    }

    #[test]
    fn fields_of_a_node_that_cannot_be_read_are_told_once() {
        let mut cluster = cluster();
        let invalid = |fields: &[&str]| {
            let field = |field: &&str| InvalidField {
                field: (*field).into(),
                reason: "is odd".into(),
            };
            fields.iter().map(field).collect()
        };
        let mut apply = |fields: &[&str]| {
            let node = Node {
                name: ObjectName::cluster_scoped("n1"),
                zone: "".into(),
                addresses: Vec::new(),
                pod_cidrs: Vec::new(),
                deleting: false,
                taints: Vec::new(),
                invalid: invalid(fields),
            };
            cluster.apply(Event::Node(Change::Applied(node)));
            names(cluster.take_unreadable())
        };
        assert_eq!(apply(&[]), None);
        let told = |fields: &[&str]| Some(fields.iter().map(|field| format!("Node n1: {field}: is odd")).collect());
        assert_eq!(apply(&["a", "b"]), told(&["a", "b"]));
        assert_eq!(apply(&["a", "b"]), None, "a heartbeat");
        assert_eq!(apply(&["b"]), told(&["b"]));
        assert_eq!(apply(&[]), told(&[]));
    }
}
