//! One pass: the kernel lists, the caller decides flow by flow, what was pointed at is deleted.

use std::time::{Duration, Instant};

use netlink::socket::NLM_F_REQUEST;
use netlink::{Batch, Counters, Socket, TransportError};

use crate::error::{Error, transport};
use crate::filter::{Family, Filter};
use crate::flow::Flow;
use crate::message::{Filtering, LISTED, decode, encode_delete, encode_list};
use crate::uapi::{EINTR, EINVAL, ENOENT, EOPNOTSUPP, NETLINK_NETFILTER};

/// How often an interrupted list is asked for again.
const DUMP_TRIES: usize = 5;

/// A socket to the connection tracker of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    filtering: Filtering,
    /// Of IPv4 and IPv6.
    passes: [Passes; 2],
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Flows in the kernel's list, more than the filter matches where the kernel cannot filter by all of it.
    pub listed: usize,
    /// Flows deleted.
    pub deleted: usize,
    /// Flows pointed at that ended by themselves meanwhile.
    pub gone: usize,
}

/// All passes so far, those that failed included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passes {
    /// How many.
    pub count: u64,
    /// How long they took, together.
    pub took: Duration,
    /// Flows that they deleted.
    pub deleted: u64,
}

impl Conntrack {
    /// Opens a socket.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            socket: Socket::open(NETLINK_NETFILTER).map_err(transport("open the conntrack socket"))?,
            filtering: Filtering::Kernel,
            passes: [Passes::default(); 2],
        })
    }

    /// Deletes the flows that the filter matches and `decide` says yes to: one list, then a batch of deletions, each of
    /// which names one flow. Where nothing is to be deleted, the list is all that is asked for.
    ///
    /// A list that a change interrupted is asked for anew, and the table may be resized while it is listed: `decide` may
    /// be asked twice about a flow. A flow whose first packet is still under way is in no list yet. A flow that began
    /// meanwhile on the tuple of one that was listed may go in its stead ([`Flow::id`]); its next packet makes it anew.
    ///
    /// # Errors
    /// [`Error::Delete`] where the kernel refused to delete some: the others are gone. [`Error::Transport`] where it
    /// refused to list (EINVAL: it has no connection tracking; EPERM: CAP_NET_ADMIN is missing) or the transport broke;
    /// how many flows were deleted is then unknown, and the pass can be repeated.
    pub fn delete_where(&mut self, filter: &Filter, decide: impl FnMut(&Flow) -> bool) -> Result<Deleted, Error> {
        let start = Instant::now();
        let done = self.pass(filter, decide);
        let [v4, v6] = &mut self.passes;
        let passes = match filter.family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        passes.count += 1;
        passes.took += start.elapsed();
        let deleted = match &done {
            Ok(done) | Err(Error::Delete { done, .. }) => done.deleted,
            Err(_) => 0,
        };
        passes.deleted += u64::try_from(deleted).unwrap_or(u64::MAX);
        done
    }

    fn pass(&mut self, filter: &Filter, mut decide: impl FnMut(&Flow) -> bool) -> Result<Deleted, Error> {
        let mut tries = DUMP_TRIES;
        let (batch, mut done) = loop {
            let mut batch = Batch::new();
            let mut done = Deleted::default();
            let mut request = Vec::new();
            let kind = encode_list(filter, self.filtering, &mut request);
            let answer = self.socket.dump(
                kind,
                |buffer| buffer.extend(request),
                |kind, payload| {
                    let flow = Some(payload).filter(|_| kind == LISTED).and_then(decode);
                    done.listed += 1;
                    if let Some(flow) = flow.filter(|flow| filter.matches(flow))
                        && decide(&flow)
                    {
                        push_delete(&mut batch, &flow);
                    }
                },
            );
            let Err(error) = answer else { break (batch, done) };
            tries -= 1;
            match after(&error, self.filtering, tries) {
                Next::Again(filtering) => self.filtering = filtering,
                Next::GiveUp => return Err(transport("list flows")(error)),
            }
        };
        let mut refused = 0;
        let mut first = None;
        for answer in self.socket.execute(batch).map_err(transport("delete flows"))? {
            match answer {
                Ok(()) => done.deleted += 1,
                Err(error) if error.errno == ENOENT => done.gone += 1,
                Err(error) => {
                    refused += 1;
                    first.get_or_insert(error);
                }
            }
        }
        match first {
            None => Ok(done),
            Some(source) => Err(Error::Delete {
                filter: *filter,
                done,
                refused,
                source,
            }),
        }
    }

    /// The passes so far, of IPv4 and IPv6.
    pub fn passes(&self) -> [Passes; 2] {
        self.passes
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.socket.counters()
    }
}

fn push_delete(batch: &mut Batch, flow: &Flow) {
    let mut payload = Vec::new();
    let kind = encode_delete(flow, &mut payload);
    batch.push(kind, NLM_F_REQUEST, |buffer| buffer.extend(payload));
}

/// What to do after a list that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Again(Filtering),
    GiveUp,
}

fn after(error: &TransportError, filtering: Filtering, tries_left: usize) -> Next {
    match (error, filtering) {
        _ if tries_left == 0 => Next::GiveUp,
        (TransportError::Interrupted, _) => Next::Again(filtering),
        (TransportError::Refused(refused), _) if refused.errno == EINTR => Next::Again(filtering),
        // Also what a kernel without connection tracking says: it will say so again.
        (TransportError::Refused(refused), Filtering::Kernel) if [EINVAL, EOPNOTSUPP].contains(&refused.errno) => {
            Next::Again(Filtering::Process)
        }
        _ => Next::GiveUp,
    }
}

#[cfg(test)]
mod tests {
    use netlink::KernelError;

    use super::*;

    #[test]
    fn lists_are_asked_for_again_where_that_helps() {
        let refused = |errno| TransportError::Refused(KernelError { errno, sentence: None });
        let check = |error: &TransportError, filtering, tries_left, expect| {
            assert_eq!(after(error, filtering, tries_left), expect, "{error} {tries_left}");
        };
        let (kernel, process) = (Filtering::Kernel, Filtering::Process);
        check(&TransportError::Interrupted, kernel, 1, Next::Again(kernel));
        check(&TransportError::Interrupted, process, 1, Next::Again(process));
        check(&TransportError::Interrupted, kernel, 0, Next::GiveUp);
        check(&refused(EINTR), kernel, 4, Next::Again(kernel));
        // A kernel that does not take the filter lists all.
        check(&refused(EINVAL), kernel, 4, Next::Again(process));
        check(&refused(EOPNOTSUPP), kernel, 4, Next::Again(process));
        check(&refused(EINVAL), process, 3, Next::GiveUp);
        check(&refused(1), kernel, 4, Next::GiveUp);
        check(&TransportError::Overrun, kernel, 4, Next::GiveUp);
    }
}
