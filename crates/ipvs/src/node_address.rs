//! The addresses of this node's interfaces, followed through rtnetlink notifications (T16): no polling.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::LinkAttribute;
use rtnetlink::{Handle, MulticastGroup};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::Error;
use crate::vip_command::DEVICE;

/// Changes that come together (an interface with its addresses) are told once.
const SETTLE: Duration = Duration::from_millis(20);

/// Notifications and a list beside them.
pub struct NodeAddresses {
    handle: Handle,
    notifications: Notifications,
    /// The connections' tasks; they end with this value.
    tasks: [JoinHandle<()>; 2],
    told: Option<Vec<IpAddr>>,
    /// Index of `kube-ipvs0`, whose own changes are thousands and of no interest.
    device: Option<u32>,
}

type Notifications = futures::stream::BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>;

/// Starts following. To be called inside a tokio runtime.
///
/// # Errors
/// Where the sockets cannot be opened.
pub async fn watch() -> Result<NodeAddresses, Error> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    let (monitor, _, notifications) = rtnetlink::new_multicast_connection(&groups).map_err(failed)?;
    let (requests, handle, _) = rtnetlink::new_connection().map_err(failed)?;
    let tasks = [tokio::spawn(monitor), tokio::spawn(requests)];
    let notifications = notifications.map(|(message, _)| message).boxed();
    Ok(NodeAddresses {
        handle,
        notifications,
        tasks,
        told: None,
        device: None,
    })
}

impl NodeAddresses {
    /// The complete list, sorted: at once the first time, then after each change of it. Loopback, IPv6 link-local
    /// addresses and those of `kube-ipvs0` are left out.
    ///
    /// # Errors
    /// Where the kernel cannot be asked any more.
    pub async fn next(&mut self) -> Result<Vec<IpAddr>, Error> {
        loop {
            if self.told.is_some() {
                self.wait().await?;
            }
            let now = self.list().await?;
            if self.told.as_ref() != Some(&now) {
                self.told = Some(now.clone());
                return Ok(now);
            }
        }
    }

    /// Waits for something that may have changed the list, and for the rest of what came with it.
    async fn wait(&mut self) -> Result<(), Error> {
        loop {
            let message = self
                .notifications
                .next()
                .await
                .ok_or_else(|| failed("the monitor ended"))?;
            if self.matters(&message) {
                break;
            }
        }
        while let Ok(message) = timeout(SETTLE, self.notifications.next()).await {
            message.ok_or_else(|| failed("the monitor ended"))?;
        }
        Ok(())
    }

    fn matters(&self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address),
            ) => Some(address.header.index) != self.device,
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)) => {
                Some(link.header.index) != self.device
            }
            // An overrun (ENOBUFS): something was lost, so the list is asked for.
            _ => true,
        }
    }

    async fn list(&mut self) -> Result<Vec<IpAddr>, Error> {
        self.device = None;
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(failed)? {
            let is_name =
                |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(name) if name == DEVICE);
            if link.attributes.iter().any(is_name) {
                self.device = Some(link.header.index);
            }
        }
        let mut all = BTreeSet::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(address) = addresses.try_next().await.map_err(failed)? {
            if Some(address.header.index) != self.device {
                all.extend(local(&address).filter(is_node_address));
            }
        }
        Ok(all.into_iter().collect())
    }
}

impl Drop for NodeAddresses {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The interface's own address: IPv4 tells it as Local (Address is the peer's on a point-to-point link).
fn local(address: &AddressMessage) -> Option<IpAddr> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| address.attributes.iter().find_map(wanted);
    find(|attribute| {
        if let AddressAttribute::Local(ip) = attribute {
            Some(*ip)
        } else {
            None
        }
    })
    .or_else(|| {
        find(|attribute| {
            if let AddressAttribute::Address(ip) = attribute {
                Some(*ip)
            } else {
                None
            }
        })
    })
}

/// Addresses on `lo` other than 127/8 and ::1 count: routers put their own there.
fn is_node_address(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    }
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Monitor(error.into())
}
