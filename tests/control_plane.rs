//! kube-ipvs follows a real kube-apiserver.
