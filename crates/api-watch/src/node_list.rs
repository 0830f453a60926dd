//! The addresses of other Nodes (T18), in few bytes: a table in place of objects, rarely in place of a watch (L21).
//!
//! A Node is some 13 KB, and changes with every heartbeat. The table that `kubectl get nodes -o wide` prints has the first
//! InternalIP and the first ExternalIP of each in some 200 bytes. Where Nodes have more addresses than these, which this
//! node's own object tells, the objects are listed as well, much more rarely.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use form_urlencoded::Serializer;
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::value::RawValue;
use service_model::{Batch, Change, Event, Kind, Node, ObjectName, parse_ip};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::back_off::BackOff;
use crate::connection::Connection;
use crate::decode::{self, Decoded};
use crate::error::Error;
use crate::failure::{Failure, chain};
use crate::request::{JSON, get, read};

const NODES: &str = "/api/v1/nodes";
/// A table where the server makes one, which all do from Kubernetes 1.10 on; else the objects.
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
/// Objects of one page of the long list.
const PAGE: &str = "500";

/// Of so many nodes that the long list lacks each is asked for by its name; more make that list due.
const BY_NAME: usize = 16;

/// What is known of other nodes; their addresses in order, each once.
type Known = BTreeMap<ObjectName, Vec<IpAddr>>;

/// Lists the other Nodes, again and again.
pub(crate) struct NodeList {
    connection: Connection,
    batches: mpsc::Sender<Batch>,
    known: Known,
    /// What the last long list found, and when the next one is due. Its addresses count until then.
    long: Option<(Known, Instant)>,
}

impl NodeList {
    pub(crate) fn new(connection: Connection, batches: mpsc::Sender<Batch>) -> Self {
        Self {
            connection,
            batches,
            known: Known::new(),
            long: None,
        }
    }

    /// Lists after a random part of `spread`, and from then on. Runs until no reader takes batches any more.
    pub(crate) async fn run(mut self, spread: Duration) -> Error {
        let mut back_off = BackOff::default();
        let mut wait = spread.mul_f64(fastrand::f64());
        loop {
            tokio::time::sleep(wait).await;
            match self.list().await {
                Ok(()) => {
                    back_off.watched();
                    wait = around(self.connection.patience().node_list_every);
                }
                Err(Failure::Closed) => return Error::Closed,
                Err(failure) => {
                    wait = back_off.after(&failure);
                    let (error, retry_in_seconds) = (chain(&failure), wait.as_secs_f32());
                    warn!(
                        error,
                        retry_in_seconds, "cannot list other Nodes, what is known of them stays"
                    );
                    if failure.may_be_stale_credentials()
                        && let Err(error) = self.connection.renew().await
                    {
                        let error = chain(&error);
                        warn!(error, "the credentials cannot be read again, the old ones are used");
                    }
                }
            }
        }
    }

    async fn list(&mut self) -> Result<(), Failure> {
        let mut short = self.short_list().await?;
        if short.tells_all || !short.has_both_families() && !self.this_node_has_several().await? {
            self.long = None;
        } else {
            self.keep_long(&short.nodes).await?;
        }
        for (name, addresses) in &mut short.nodes {
            let more = self.long.iter().filter_map(|(known, _)| known.get(name)).flatten();
            addresses.extend(more);
            addresses.sort_unstable();
            addresses.dedup();
        }
        self.tell(short.nodes).await
    }

    /// Makes the long list where it is due. Between two of them it takes in nodes that are new, or whose first addresses
    /// are others.
    async fn keep_long(&mut self, short: &Known) -> Result<(), Failure> {
        let Some((known, _)) = self.long.as_ref().filter(|(_, due)| Instant::now() < *due) else {
            return self.renew_long().await;
        };
        let lacks = |name: &ObjectName, addresses: &[IpAddr]| {
            let of_long = known.get(name);
            of_long.is_none_or(|known| !addresses.iter().all(|address| known.contains(address)))
        };
        let new = short.iter().filter(|(name, addresses)| lacks(name, addresses));
        let new: Vec<_> = new.map(|(name, _)| name.clone()).collect();
        if new.len() > BY_NAME {
            return self.renew_long().await;
        }
        for name in new {
            let body = self.by_name(name.name()).await?;
            let nodes = self.take(&body)?.0.nodes;
            self.long.iter_mut().for_each(|(known, _)| known.extend(nodes.clone()));
        }
        Ok(())
    }

    async fn renew_long(&mut self) -> Result<(), Failure> {
        let every = self.connection.patience().long_node_list_every;
        self.long = Some((self.long_list().await?, Instant::now() + around(every)));
        Ok(())
    }

    /// A list of one.
    async fn by_name(&self, name: &str) -> Result<BytesMut, Failure> {
        let selector = format!("metadata.name={name}");
        let query = [("fieldSelector", selector.as_str()), ("resourceVersion", "0")];
        self.page(&query, JSON).await
    }

    /// This node has several addresses of a type, and so may others.
    async fn this_node_has_several(&self) -> Result<bool, Failure> {
        let body = self.by_name(self.connection.node_name()).await?;
        let page: Page<'_> = serde_json::from_slice(&body).map_err(Failure::Garbled)?;
        let mut objects = page.items.iter().flatten();
        Ok(objects.any(|object| decode::has_several_addresses(object)))
    }

    /// From the server's cache: what it lacks, the next list has.
    async fn short_list(&self) -> Result<Listed, Failure> {
        let query = [("includeObject", "None"), ("resourceVersion", "0")];
        let body = self.page(&query, TABLE).await?;
        Ok(self.take(&body)?.0)
    }

    async fn long_list(&self) -> Result<Known, Failure> {
        let (mut all, mut next) = (Known::new(), String::new());
        loop {
            let mut query = vec![("limit", PAGE)];
            if !next.is_empty() {
                query.push(("continue", &next));
            }
            let body = self.page(&query, JSON).await?;
            let (listed, after) = self.take(&body)?;
            all.extend(listed.nodes);
            if after.is_empty() {
                return Ok(all);
            }
            next = after;
        }
    }

    async fn page(&self, pairs: &[(&str, &str)], accept: &str) -> Result<BytesMut, Failure> {
        let query = Serializer::new(String::new()).extend_pairs(pairs).finish();
        let response = get(&self.connection, format!("{NODES}?{query}"), accept).await?;
        read(response.into_body(), self.connection.patience().watch).await
    }

    /// Decodes a page, and what its next one is asked for with. Of an object that cannot be read what is known stays.
    fn take(&self, body: &[u8]) -> Result<(Listed, String), Failure> {
        let page: Page<'_> = serde_json::from_slice(body).map_err(Failure::Garbled)?;
        let mut listed = match &page.column_definitions {
            Some(columns) => rows(columns, page.rows.as_deref().unwrap_or_default()).map_err(Failure::Garbled)?,
            None => self.objects(page.items.as_deref().unwrap_or_default()),
        };
        // That one is followed.
        listed
            .nodes
            .remove(&ObjectName::cluster_scoped(self.connection.node_name()));
        Ok((listed, page.metadata.next))
    }

    fn objects(&self, items: &[&RawValue]) -> Listed {
        let mut nodes = Known::new();
        for item in items {
            match decode::object(Kind::Node, *item) {
                Ok(Decoded {
                    event: Event::Node(Change::Applied(node)),
                    ..
                }) => drop(nodes.insert(node.name, node.addresses)),
                Ok(_) => {}
                Err(error) => {
                    let name = decode::identity(Kind::Node, *item).map(|identity| identity.name);
                    warn!(name = name.as_ref().map_or("", |name| name.name()), %error, "a Node that cannot be read");
                    if let Ok(name) = name {
                        let addresses = self.known.get(&name).cloned().unwrap_or_default();
                        nodes.insert(name, addresses);
                    }
                }
            }
        }
        Listed { nodes, tells_all: true }
    }

    /// Tells the model what differs, as one step (L20).
    async fn tell(&mut self, nodes: Known) -> Result<(), Failure> {
        let mut batch = Batch::new();
        for (name, addresses) in &nodes {
            if self.known.get(name) != Some(addresses) {
                batch.push(Event::Node(Change::Applied(of_addresses(name, addresses))));
            }
        }
        let gone = self.known.keys().filter(|name| !nodes.contains_key(*name));
        batch.extend(gone.map(|name| decode::deletion(Kind::Node, name.clone())));
        info!(
            kind = %"other Nodes",
            objects = nodes.len(),
            changes = batch.len(),
            "listed"
        );
        batch.push(Event::OtherNodesComplete);
        self.known = nodes;
        self.batches.send(batch).await.map_err(|_| Failure::Closed)
    }
}

/// A list, or a page of one.
struct Listed {
    nodes: Known,
    /// Each node is there with all of its addresses.
    tells_all: bool,
}

impl Listed {
    fn has_both_families(&self) -> bool {
        let has = |v4| self.nodes.values().flatten().any(|address| address.is_ipv4() == v4);
        has(true) && has(false)
    }
}

/// A table, or a list of objects from a server that makes none.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(borrow)]
    column_definitions: Option<Vec<Column<'a>>>,
    #[serde(borrow)]
    rows: Option<Vec<Row<'a>>>,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
struct PageMetadata {
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct Column<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    cells: Vec<&'a RawValue>,
}

/// Reads the columns that `kubectl get nodes -o wide` has (pkg/printers/internalversion/printers.go). A missing address
/// is `<none>`; of several of a type the first is there.
fn rows(columns: &[Column<'_>], rows: &[Row<'_>]) -> serde_json::Result<Listed> {
    let at = |name: &str| {
        let at = columns.iter().position(|column| column.name == name);
        at.ok_or_else(|| serde_json::Error::custom(format!("a table without the column {name}")))
    };
    let (name, internal, external) = (at("Name")?, at("Internal-IP")?, at("External-IP")?);
    let mut nodes = Known::new();
    for row in rows {
        let cell = |at: usize| {
            let cell = row
                .cells
                .get(at)
                .ok_or_else(|| serde_json::Error::custom("a row without a cell"))?;
            serde_json::from_str::<Cow<'_, str>>(cell.get())
        };
        let addresses = [parse_ip(&cell(internal)?), parse_ip(&cell(external)?)];
        let name = ObjectName::cluster_scoped(&cell(name)?);
        nodes.insert(name, addresses.into_iter().flatten().collect());
    }
    Ok(Listed {
        nodes,
        tells_all: false,
    })
}

/// All that the model asks of another node.
fn of_addresses(name: &ObjectName, addresses: &[IpAddr]) -> Node {
    Node {
        name: name.clone(),
        zone: Box::default(),
        addresses: addresses.to_vec(),
        pod_cidrs: Vec::new(),
        deleting: false,
        taints: Vec::new(),
        invalid: Vec::new(),
    }
}

/// A random time between half and one and a half of this one.
fn around(time: Duration) -> Duration {
    time.mul_f64(0.5 + fastrand::f64())
}
