//! A service and its endpoints → its frontends and rejections. Pure.

use std::net::SocketAddr;

use foldhash::{HashMap, HashSet};

use crate::claim::{Claim, Claims, Standing};
use crate::config::Config;
use crate::endpoint_cache::{Endpoints, Slice};
use crate::event::Kind;
use crate::face::{Face, Faces, cluster_ip, external_local, faces, family_of, is_programmable};
use crate::frontend::{
    AddressKind, Frontend, FrontendKey, HealthCheck, Masquerade, Program, Refusal, Rejection, SourceRanges,
};
use crate::nodes::Nodes;
use crate::object::{Family, Service, ServiceType, TrafficPolicy};
use crate::policy::{Categories, categorize};
use crate::rotation::rotate;
use crate::scheduler::{Scheduler, UnknownScheduler};
use crate::source_range::source_ranges;
use crate::step::step;

/// What a program depends on besides the service and its slices.
pub(crate) struct View<'a> {
    pub(crate) config: &'a Config,
    pub(crate) nodes: &'a Nodes,
    pub(crate) claims: &'a Claims,
}

/// The endpoints of each port and family of a service by policy, each looked for once.
struct Served<'a> {
    service: &'a Service,
    endpoints: Endpoints<'a>,
    categories: HashMap<(usize, Family), Categories>,
}

impl<'a> Served<'a> {
    fn new(service: &'a Service, slices: &'a [Slice], view: &View<'a>) -> Self {
        Self {
            service,
            endpoints: Endpoints::new(slices, &view.nodes.zone),
            categories: HashMap::default(),
        }
    }

    fn categories(&mut self, port: usize, family: Family) -> &Categories {
        self.categories.entry((port, family)).or_insert_with(|| {
            let port = self.service.ports.get(port);
            port.map_or_else(Categories::default, |port| {
                categorize(&self.endpoints.candidates(family, port))
            })
        })
    }
}

/// What holds for all frontends of a service.
struct Whole<'a> {
    service: &'a Service,
    view: &'a View<'a>,
    faces: &'a Faces,
    scheduler: Scheduler,
    /// Of IPv4 and IPv6.
    source_ranges: [Option<SourceRanges>; 2],
}

pub(crate) fn program(service: &Service, slices: &[Slice], view: &View<'_>) -> Program {
    let reject = |field: &str, reason: String| Rejection {
        kind: Kind::Service,
        object: service.name.clone(),
        field: field.into(),
        reason: reason.into(),
    };
    let invalid = service
        .invalid
        .iter()
        .map(|invalid| reject(&invalid.field, invalid.reason.to_string()));
    if !is_programmable(service) {
        // Without a cluster IP it is headless, but not where there is one that cannot be read.
        let unread = |rejection: &Rejection| !service.other_proxy && rejection.field.starts_with("spec.clusterIP");
        return Program {
            rejections: invalid.filter(unread).collect(),
            ..Program::default()
        };
    }
    let mut program = Program {
        drain_timeout: service.drain_timeout,
        rejections: invalid.collect(),
        ..Program::default()
    };
    program.rejections.extend(slices.iter().flat_map(Slice::rejections));
    let own = own_scheduler(service, view.config).unwrap_or_else(|reason| {
        program.rejections.push(reject(SCHEDULER_FIELD, reason));
        None
    });
    program.own_scheduler = own.filter(|_| view.config.capture.binds());

    let mut list = faces(service, view.config, view.nodes);
    program.elsewhere = list.elsewhere;
    let refused = std::mem::take(&mut list.refused).into_iter();
    program
        .rejections
        .extend(refused.map(|(field, reason)| reject(&field, reason)));
    let mut whole = Whole {
        service,
        view,
        faces: &list,
        scheduler: own.unwrap_or(view.config.scheduler),
        source_ranges: [Family::V4, Family::V6].map(|family| source_ranges(service, family, view.nodes)),
    };
    if let Some(reason) = whole.bound_ranges() {
        program
            .rejections
            .insert(0, reject("spec.loadBalancerSourceRanges", reason));
    }
    let mut served = Served::new(service, slices, view);
    match frontends(&whole, &mut served) {
        Ok((frontends, lost)) => {
            program.frontends = frontends;
            let lost = lost.into_iter();
            program
                .rejections
                .extend(lost.map(|(field, reason)| reject(field, reason)));
            program.health_check = health_check(service, &mut served);
        }
        Err(TooMany { real_servers, limit }) => {
            let reason = format!(
                "asks for {real_servers} real servers or more, and the limit is {limit} (limits.realServersPerService): \
                 nothing of it is served"
            );
            program.rejections.insert(0, reject("", reason));
            program.health_check = health_check(service, &mut Served::new(service, &[], view));
        }
    }
    program.shorten_rejections();
    program
}

/// A service asks for more real servers than it may have (T39). The whole of it is refused: which part would be left depends
/// on what comes and goes, and half a service is harder to notice than none.
struct TooMany {
    real_servers: usize,
    limit: usize,
}

/// The places that a service does not have: field and reason.
type Lost<'a> = Vec<(&'a str, String)>;

fn frontends<'a>(whole: &Whole<'a>, served: &mut Served<'_>) -> Result<(Vec<Frontend>, Lost<'a>), TooMany> {
    let (view, limit) = (whole.view, whole.view.config.limits.real_servers);
    let mut real_servers = whole.faces.wanted_places;
    if real_servers > limit {
        return Err(TooMany { real_servers, limit });
    }
    real_servers = 0;
    let (mut frontends, mut reasons, mut lost) = (Vec::new(), Lost::new(), HashSet::default());
    for face in &whole.faces.faces {
        step();
        let claim_alone = face.kind == AddressKind::NodePort && !face.key.address.is_unspecified();
        if claim_alone && !view.config.capture.binds() {
            continue;
        }
        if let Some(reason) = taken(whole.service, face, view.claims) {
            // One rejection for a field, not one for each address it stands for.
            if lost.insert((&face.field, face.key.port, face.key.protocol)) {
                reasons.push((&*face.field, reason));
            }
            continue;
        }
        let found = served.categories(face.port, family_of(face.key.address));
        if face.kind == AddressKind::Insiders && found.cluster.is_empty() {
            continue;
        }
        let frontend = whole.frontend(face, found);
        real_servers += whole.weight(&frontend);
        if real_servers > limit {
            return Err(TooMany { real_servers, limit });
        }
        frontends.push(frontend);
    }
    Ok((frontends, reasons))
}

/// Why a place is not this service's (T19); `None` = it is.
fn taken(service: &Service, face: &Face, claims: &Claims) -> Option<String> {
    let claim = Claim {
        kind: face.kind,
        created: service.created,
        service: service.name.clone(),
    };
    match claims.standing(&face.key, &claim) {
        Standing::Holds => None,
        Standing::After(holder) => Some(format!("{} is taken by service {holder}", face.key)),
        Standing::Behind(before) => Some(format!(
            "{} is taken, and service {before} waits for it before this one",
            face.key
        )),
    }
}

/// Rejections of one service that a program has.
const TOLD: usize = 10;

impl Program {
    /// How many things of the service cannot be programmed, those without a rejection of their own among them.
    pub fn rejected(&self) -> usize {
        let the_last_one = usize::from(self.more_rejections > 0);
        self.rejections.len() - the_last_one + self.more_rejections
    }

    /// Keeps the first ones, and a last one that gives the number of the rest.
    fn shorten_rejections(&mut self) {
        self.more_rejections = self.rejections.len().saturating_sub(TOLD);
        let mut rest = self.rejections.drain(TOLD.min(self.rejections.len())..);
        if let Some(first) = rest.next() {
            let more = Rejection {
                field: Box::default(),
                reason: format!("and {} more", self.more_rejections).into(),
                ..first
            };
            drop(rest);
            self.rejections.push(more);
        }
    }
}

const SCHEDULER_FIELD: &str = "metadata.annotations[kube-ipvs.io/scheduler]";

fn own_scheduler(service: &Service, config: &Config) -> Result<Option<Scheduler>, String> {
    let name = service.scheduler.as_ref();
    let Some(name) = name else { return Ok(None) };
    let used = config.scheduler;
    let scheduler = name
        .parse()
        .map_err(|error: UnknownScheduler| format!("{error}; {used} is used"))?;
    let allowed = &config.allowed_schedulers;
    if allowed.is_empty() || scheduler == used || allowed.contains(&scheduler) {
        Ok(Some(scheduler))
    } else {
        Err(format!("{scheduler} is not among allowedSchedulers; {used} is used"))
    }
}

impl Whole<'_> {
    /// What a frontend costs, in real servers (T39).
    fn weight(&self, frontend: &Frontend) -> usize {
        let of_scheduler = if self.view.config.capture.binds() {
            self.scheduler.weight()
        } else {
            0
        };
        (frontend.endpoints.len() + frontend.insider_endpoints.len()).max(1) + of_scheduler
    }

    /// T39: too many ranges admit nobody. Returns what is to be said of it.
    fn bound_ranges(&mut self) -> Option<String> {
        let limit = self.view.config.limits.source_ranges;
        let balanced = self
            .faces
            .faces
            .iter()
            .filter(|face| face.kind == AddressKind::LoadBalancer);
        let of_place = |face: &Face| self.ranges_at(face).map_or(0, |ranges| ranges.ranges.len());
        let elements: usize = balanced.map(of_place).sum();
        if elements <= limit {
            return None;
        }
        for ranges in self.source_ranges.iter_mut().flatten() {
            ranges.ranges.clear();
            ranges.admits_node = false;
        }
        Some(format!(
            "{elements} ranges, counted at each place, and the limit is {limit} (limits.sourceRangesPerService): nobody \
             may connect"
        ))
    }

    fn ranges_at(&self, face: &Face) -> Option<&SourceRanges> {
        let [v4, v6] = &self.source_ranges;
        if face.key.address.is_ipv4() { v4 } else { v6 }.as_ref()
    }

    fn frontend(&self, face: &Face, categories: &Categories) -> Frontend {
        let (service, view) = (self.service, self.view);
        let (external, local) = match face.kind {
            AddressKind::ClusterIp => (false, service.internal_traffic_policy == TrafficPolicy::Local),
            AddressKind::Insiders => (false, false),
            AddressKind::NodePort | AddressKind::LoadBalancer | AddressKind::ExternalIp => {
                (true, external_local(service))
            }
        };
        let binds = view.config.capture.binds();
        let short_circuit = external && local;
        let mut endpoints = if local { &categories.local } else { &categories.cluster }.clone();
        rotate(&mut endpoints, &view.config.node_name, &face.key);
        Frontend {
            // Without endpoints everybody is refused at the address that he asked.
            insiders: if binds && short_circuit && !categories.cluster.is_empty() {
                self.redirect(face)
            } else {
                None
            },
            insider_endpoints: if short_circuit && !binds {
                categories.cluster.clone()
            } else {
                Vec::new()
            },
            policy: if local {
                TrafficPolicy::Local
            } else {
                TrafficPolicy::Cluster
            },
            // T1, T4: a Local policy drops where the endpoints are elsewhere; T5: it is refused where there are none.
            refusal: if local && categories.any {
                Refusal::Drop
            } else {
                Refusal::Reject
            },
            endpoints,
            kind: face.kind,
            port_name: service
                .ports
                .get(face.port)
                .map_or_else(Box::default, |port| port.name.clone()),
            node_address: external && view.nodes.has_interface(face.key.address),
            scheduler: self.scheduler,
            affinity: service.affinity,
            masquerade: match (external, local) {
                (true, true) => Masquerade::Never,
                (true, false) => Masquerade::Always,
                // Who is sent there has been looked at where he asked.
                (false, _) if face.kind == AddressKind::Insiders => Masquerade::Never,
                (false, _) if view.config.masquerade_all => Masquerade::Always,
                (false, _) => Masquerade::Outsiders,
            },
            source_ranges: self.source_ranges(face),
            key: face.key,
        }
    }

    /// T15: load-balancer addresses only.
    fn source_ranges(&self, face: &Face) -> Option<SourceRanges> {
        if face.kind == AddressKind::LoadBalancer {
            self.ranges_at(face).cloned()
        } else {
            None
        }
    }

    /// Where every endpoint of the cluster answers on the service's cluster IP (T2), where that is the service's own.
    fn redirect(&self, face: &Face) -> Option<SocketAddr> {
        let address = cluster_ip(self.service, family_of(face.key.address))?;
        let (port, kind) = match self.service.internal_traffic_policy {
            TrafficPolicy::Cluster => (self.service.ports.get(face.port)?.port, AddressKind::ClusterIp),
            TrafficPolicy::Local => (self.faces.insiders_port(face.port)?, AddressKind::Insiders),
        };
        let key = FrontendKey {
            address,
            port,
            protocol: face.key.protocol,
        };
        let holder = self.view.claims.holder(&key)?;
        (holder.service == self.service.name && holder.kind == kind).then_some(SocketAddr::new(address, port))
    }
}

/// What takes no traffic is not counted: an address needs a port that the service has, and the copy of it that counts
/// must be ready.
fn health_check(service: &Service, served: &mut Served<'_>) -> Option<HealthCheck> {
    let wanted = service.service_type == ServiceType::LoadBalancer
        && external_local(service)
        && service.health_check_node_port != 0;
    let mut count = |family| {
        cluster_ip(service, family)?;
        let mut addresses = HashSet::default();
        for port in 0..service.ports.len() {
            let found = served.categories(port, family);
            let local = found.local.iter().filter(|_| found.local_ready);
            addresses.extend(local.map(|target| target.address.ip()));
        }
        Some(addresses.len())
    };
    wanted.then(|| HealthCheck {
        port: service.health_check_node_port,
        v4: count(Family::V4),
        v6: count(Family::V6),
    })
}
