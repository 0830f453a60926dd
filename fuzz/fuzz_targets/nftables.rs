//! A payload of nf_tables: elements of each of our sets, rules, tables, chains of others, notifications.

#![no_main]

use dataplane::element::{ElementKey, ElementValue, SetName};
use libfuzzer_sys::fuzz_target;
use netlink::Notification;
use nftables::Family;
use nftables::base_chain::decode_base_chain;
use nftables::message::{decode_elements, decode_rule, decode_table};

fuzz_target!(init: fuzz::attempt::prepare(), |payload: &[u8]| {
    for family in [Family::Ip, Family::Ip6] {
        for name in SetName::ALL {
            for element in decode_elements(&name.definition(family), payload) {
                drop(element.to_string());
                let Some((key, value)) = ElementKey::read(name, family, &element) else {
                    continue;
                };
                // It is never written.
                if value == ElementValue::Unknown {
                    continue;
                }
                let again = ElementKey::read(name, family, &key.element(value));
                assert_eq!(again, Some((key, value)), "what is written of an element reads as the same");
            }
        }
    }
    if let Some(chain) = decode_base_chain(payload) {
        drop(chain.to_string());
    }
    let _ = (decode_rule(payload), decode_table(payload));
    for kind in [0x0a00, 0x0a0c, 0x0a0f] {
        let message = Notification {
            kind,
            originator: 7,
            payload,
        };
        let _ = nftables::fuzzing::is_of_others("kube-ipvs", 8, &message);
    }
});
