//! What went through each virtual server, by the kernel's own counters: asked for by one list of IPVS when somebody reads
//! the page, by a thread that is not the sync thread.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use dataplane::Survey;
use foldhash::{HashMap, HashSet};
use ipvs::{Ipvs, Statistics, VirtualServer};
use prometheus_client::metrics::gauge::ConstGauge;
use tracing::warn;

use super::page::Page;

/// Virtual servers with series of their own. More are summed up in one: five series for each are a burden to who stores
/// them.
const LIMIT: usize = 2000;
/// Who reads more often is told the same again.
const FRESH: Duration = Duration::from_secs(1);

type SeriesLabels = [(&'static str, String); 3];

/// What is told of the virtual servers.
#[derive(Debug, Default)]
pub(crate) struct VirtualServers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    ipvs: Option<Ipvs>,
    read_at: Option<Instant>,
    took: Duration,
    /// Those with series of their own: they keep them as long as they live.
    named: HashSet<VirtualServer>,
    series: Vec<(SeriesLabels, Statistics)>,
    /// What the others were at when they were read last.
    others: HashMap<VirtualServer, Statistics>,
    /// All that went through others so far. Only ever more.
    sum: Statistics,
}

impl VirtualServers {
    /// Writes all series; none where IPVS cannot be asked.
    pub(super) fn write(&self, page: &mut Page<'_>, survey: &Survey) -> fmt::Result {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.read_at.is_none_or(|at| at.elapsed() >= FRESH) {
            state.read(survey);
        }
        state.write(page)
    }
}

impl State {
    fn read(&mut self, survey: &Survey) {
        let start = Instant::now();
        match self.list() {
            Ok(found) => self.take(&found, survey, LIMIT),
            Err(error) => {
                warn!(%error, "the counters of IPVS cannot be read");
                self.ipvs = None;
            }
        }
        self.took = start.elapsed();
        self.read_at = Some(start);
    }

    fn list(&mut self) -> Result<Vec<(VirtualServer, Statistics)>, ipvs::Error> {
        let ipvs = match &mut self.ipvs {
            Some(ipvs) => ipvs,
            none => none.insert(Ipvs::open()?),
        };
        let found = ipvs.virtual_servers()?;
        Ok(found
            .into_iter()
            .map(|found| (found.server, found.statistics))
            .collect())
    }

    /// Foreign virtual servers are nobody's.
    fn take(&mut self, found: &[(VirtualServer, Statistics)], survey: &Survey, limit: usize) {
        let owners: HashMap<_, _> = survey.owners.iter().map(|(server, owner)| (*server, owner)).collect();
        let found: Vec<_> = found.iter().filter(|(server, _)| owners.contains_key(server)).collect();
        let present: HashSet<_> = found.iter().map(|(server, _)| *server).collect();
        self.named.retain(|server| present.contains(server));
        self.others.retain(|server, _| present.contains(server));
        self.series.clear();
        for (server, statistics) in found {
            if !self.named.contains(server) && self.named.len() < limit && !self.others.contains_key(server) {
                self.named.insert(*server);
            }
            if self.named.contains(server) {
                let owner = owners.get(server).map(|owner| (owner.namespace(), owner.name()));
                let (namespace, service) = owner.unwrap_or_default();
                let labels = [
                    ("namespace", namespace.to_owned()),
                    ("service", service.to_owned()),
                    ("virtual_server", server.to_string()),
                ];
                self.series.push((labels, *statistics));
            } else {
                let before = self.others.insert(*server, *statistics).unwrap_or_default();
                add(&mut self.sum, since(before, *statistics));
            }
        }
        if self.sum != Statistics::default() || !self.others.is_empty() {
            let labels = [
                ("namespace", String::new()),
                ("service", "other".to_owned()),
                ("virtual_server", String::new()),
            ];
            self.series.push((labels, self.sum));
        }
    }

    fn write(&self, page: &mut Page<'_>) -> fmt::Result {
        type Value = fn(&Statistics) -> u64;
        let metrics: [(&str, &str, Value); 5] = [
            ("connections", "Connections that IPVS scheduled.", |it| it.connections),
            ("incoming_bytes", "Bytes from clients.", |it| it.bytes_in),
            ("incoming_packets", "Packets from clients.", |it| it.packets_in),
            ("outgoing_bytes", "Bytes to clients.", |it| it.bytes_out),
            ("outgoing_packets", "Packets to clients.", |it| it.packets_out),
        ];
        page.put(
            "kube_ipvs_virtual_server_collect_seconds",
            "How long the last list of IPVS for the counters below took.",
            &ConstGauge::new(self.took.as_secs_f64()),
        )?;
        for (name, help, value) in metrics {
            let name = format!("kube_ipvs_virtual_server_{name}_total");
            let series = self.series.iter().map(|(labels, it)| (labels.as_slice(), value(it)));
            page.counters(&name, help, series)?;
        }
        Ok(())
    }
}

fn add(sum: &mut Statistics, more: Statistics) {
    sum.connections += more.connections;
    sum.packets_in += more.packets_in;
    sum.packets_out += more.packets_out;
    sum.bytes_in += more.bytes_in;
    sum.bytes_out += more.bytes_out;
}

/// A counter that is less than before began anew.
fn since(before: Statistics, now: Statistics) -> Statistics {
    let more = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now);
    Statistics {
        connections: more(before.connections, now.connections),
        packets_in: more(before.packets_in, now.packets_in),
        packets_out: more(before.packets_out, now.packets_out),
        bytes_in: more(before.bytes_in, now.bytes_in),
        bytes_out: more(before.bytes_out, now.bytes_out),
    }
}

#[cfg(test)]
mod tests {
    use ipvs::Protocol;
    use service_model::ObjectName;

    use super::*;

    fn server(last: u8) -> VirtualServer {
        VirtualServer::Address {
            address: [10, 96, 0, last].into(),
            port: 80,
            protocol: Protocol::Tcp,
        }
    }

    fn survey(numbers: &[u8]) -> Survey {
        let owner = |n: &u8| (server(*n), ObjectName::new("shop", &format!("s{n}")));
        Survey {
            owners: numbers.iter().map(owner).collect(),
            ..Survey::default()
        }
    }

    fn check(state: &mut State, wanted: &[u8], found: &[(u8, u64)], expect: &[(&str, u64)]) {
        let connections = |connections| Statistics {
            connections,
            ..Statistics::default()
        };
        let found: Vec<_> = found
            .iter()
            .map(|(n, count)| (server(*n), connections(*count)))
            .collect();
        state.take(&found, &survey(wanted), 2);
        let told: Vec<_> = state
            .series
            .iter()
            .map(|(labels, it)| (&*labels[1].1, it.connections))
            .collect();
        assert_eq!(told, expect);
    }

    #[test]
    fn above_the_limit_all_are_one_that_never_shrinks() {
        let mut state = State::default();
        check(&mut state, &[1], &[(1, 5), (9, 7)], &[("s1", 5)]);
        let all = [1, 2, 3, 4];
        check(
            &mut state,
            &all,
            &[(1, 6), (2, 1), (3, 10), (4, 1)],
            &[("s1", 6), ("s2", 1), ("other", 11)],
        );
        // Whoever is named stays so; one of the others was made anew.
        check(
            &mut state,
            &all,
            &[(4, 3), (3, 2), (2, 2), (1, 6)],
            &[("s2", 2), ("s1", 6), ("other", 15)],
        );
        check(&mut state, &all, &[(1, 6), (3, 2)], &[("s1", 6), ("other", 15)]);
        check(
            &mut state,
            &all,
            &[(1, 6), (4, 1)],
            &[("s1", 6), ("s4", 1), ("other", 15)],
        );
    }
}
