//! L14: what the IPVS mode needs is tried in a scratch namespace, and nothing of it is seen here.

use dataplane::probe::{Answer, probe};
use service_model::Scheduler;
use testbed::netns::Netns;

use crate::seen;

#[test]
fn this_kernel_is_able_and_nothing_is_left() {
    let netns = Netns::new().unwrap();
    let state = || {
        (
            seen::ipvsadm(&netns),
            seen::ruleset(&netns),
            netns.sh("ip link").unwrap(),
        )
    };
    let before = state();
    for scheduler in [Scheduler::RoundRobin, Scheduler::Maglev] {
        assert_eq!(netns.run(|| Ok(probe(scheduler))).unwrap(), Answer::Able);
    }
    assert_eq!(state(), before);
}
