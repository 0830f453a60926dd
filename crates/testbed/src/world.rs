//! Nodes, pods and clients as network namespaces.
