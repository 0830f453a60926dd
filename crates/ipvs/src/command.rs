//! What can be asked of IPVS to change, as values.

use crate::virtual_server::{RealServer, RealServerConfig, VirtualServer, VirtualServerConfig};

/// One change of the IPVS tables: one netlink message, one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `IPVS_CMD_NEW_SERVICE`. Exists: EEXIST. Unknown scheduler: ENOENT.
    NewService(VirtualServer, VirtualServerConfig),
    /// `IPVS_CMD_SET_SERVICE`; real servers and connections stay. Missing: ESRCH.
    SetService(VirtualServer, VirtualServerConfig),
    /// `IPVS_CMD_DEL_SERVICE`, with its real servers. Missing: ESRCH.
    DelService(VirtualServer),
    /// `IPVS_CMD_NEW_DEST`. Virtual server missing: ESRCH. Exists: EEXIST.
    NewDest(VirtualServer, RealServer, RealServerConfig),
    /// `IPVS_CMD_SET_DEST`. Missing: ENOENT.
    SetDest(VirtualServer, RealServer, RealServerConfig),
    /// `IPVS_CMD_DEL_DEST`. Missing: ENOENT.
    DelDest(VirtualServer, RealServer),
}
