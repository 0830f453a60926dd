//! Clients on threads of their own that ask without end; every question that is not answered as it must be is kept,
//! with its moment.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::request::{Answer, Conversation, Place};
use crate::netns::Netns;

/// How long a client waits for an answer: longer than any pause of a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two questions of one client.
const PACE: Duration = Duration::from_millis(15);
/// Faults kept in words; all are counted.
const KEPT: usize = 200;

/// How a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// One connection, or one UDP source port, for questions without end.
    Constant,
    /// The same for this long, then a new one: as clients do whose server is about to end.
    Until(Duration),
    /// A new connection, or source port, for every question.
    Short,
}

/// A client.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where it is.
    pub netns: Netns,
    /// What it is called in a report.
    pub name: String,
    /// Whom it asks.
    pub place: Place,
    /// How.
    pub habit: Habit,
    /// Names of servers that may answer begin so.
    pub servers: String,
}

/// Running clients.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    started: Instant,
    requests: AtomicU64,
    conversations: AtomicU64,
    slowest: AtomicU64,
    failed: AtomicU64,
    resets: AtomicU64,
    faults: Mutex<Vec<String>>,
}

/// What clients saw.
#[derive(Clone, Debug)]
pub struct Summary {
    /// How many they were.
    pub clients: usize,
    /// Questions, the failed ones, too.
    pub requests: u64,
    /// Connections, or source ports.
    pub conversations: u64,
    /// The longest wait for an answer. It decides nothing.
    pub slowest: Duration,
    /// Questions without the right answer.
    pub failed: u64,
    /// Those of them that ended with a reset, or a refusal.
    pub resets: u64,
    /// The first of them in words.
    pub faults: Vec<String>,
}

impl Load {
    /// Starts clients, and returns when each has had its first answer or failed.
    pub fn start(clients: &[Client]) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            started: Instant::now(),
            requests: AtomicU64::new(0),
            conversations: AtomicU64::new(0),
            slowest: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            faults: Mutex::new(Vec::new()),
        });
        let (begun, first) = mpsc::channel();
        let threads = clients
            .iter()
            .cloned()
            .map(|client| {
                let (shared, begun) = (Arc::clone(&shared), begun.clone());
                thread::spawn(move || shared.ask_without_end(&client, begun))
            })
            .collect();
        drop(begun);
        // Each drops its sender then.
        let _: Result<(), _> = first.recv();
        Self { shared, threads }
    }

    /// What they saw so far.
    pub fn so_far(&self) -> Summary {
        let shared = &self.shared;
        Summary {
            clients: self.threads.len(),
            requests: shared.requests.load(Ordering::SeqCst),
            conversations: shared.conversations.load(Ordering::SeqCst),
            slowest: Duration::from_micros(shared.slowest.load(Ordering::SeqCst)),
            failed: shared.failed.load(Ordering::SeqCst),
            resets: shared.resets.load(Ordering::SeqCst),
            faults: shared.faults.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Ends them; the last questions are waited for.
    pub fn finish(mut self) -> Summary {
        self.shared.stop.store(true, Ordering::SeqCst);
        let threads = std::mem::take(&mut self.threads);
        let clients = threads.len();
        for thread in threads {
            let _ = thread.join();
        }
        Summary {
            clients,
            ..self.so_far()
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn ask_without_end(&self, client: &Client, begun: Sender<()>) {
        if let Err(error) = client.netns.enter() {
            self.fault(client, &Answer::Other(format!("{error:#}")), 0);
            return;
        }
        let mut begun = Some(begun);
        while !self.stop.load(Ordering::SeqCst) {
            self.conversation(client, &mut begun);
        }
    }

    fn conversation(&self, client: &Client, begun: &mut Option<Sender<()>>) {
        let began = Instant::now();
        let over = |asked: u64| match client.habit {
            Habit::Constant => false,
            Habit::Until(age) => began.elapsed() >= age,
            Habit::Short => asked != 0,
        };
        self.conversations.fetch_add(1, Ordering::SeqCst);
        let mut conversation = match Conversation::open_here(client.place, PATIENCE) {
            Ok(conversation) => conversation,
            Err(answer) => {
                self.requests.fetch_add(1, Ordering::SeqCst);
                self.fault(client, &answer, 0);
                drop(begun.take());
                thread::sleep(PACE);
                return;
            }
        };
        let mut server = None;
        let mut asked = 0;
        while !over(asked) && !self.stop.load(Ordering::SeqCst) {
            let sent = Instant::now();
            let answer = conversation.ask();
            let took = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.slowest.fetch_max(took, Ordering::SeqCst);
            self.requests.fetch_add(1, Ordering::SeqCst);
            asked += 1;
            drop(begun.take());
            let right = match &answer {
                Answer::Server(name) => {
                    name.starts_with(&client.servers) && *server.get_or_insert_with(|| name.clone()) == *name
                }
                _ => false,
            };
            if !right {
                self.fault(client, &answer, asked);
                return;
            }
            thread::sleep(PACE);
        }
    }

    fn fault(&self, client: &Client, answer: &Answer, asked: u64) {
        self.failed.fetch_add(1, Ordering::SeqCst);
        if matches!(answer, Answer::Reset | Answer::Refused) {
            self.resets.fetch_add(1, Ordering::SeqCst);
        }
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() < KEPT {
            let (seconds, place) = (self.started.elapsed().as_secs_f64(), client.place);
            faults.push(format!(
                "{seconds:9.3} s  {} {place}: {answer}, question {asked} of a conversation",
                client.name
            ));
        }
    }
}

impl fmt::Display for Summary {
    /// One line, and the faults below.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            clients,
            requests,
            conversations,
            failed,
            resets,
            ..
        } = self;
        write!(
            f,
            "{clients} clients, {requests} requests in {conversations} conversations: {failed} failed, {resets} of them \
             reset or refused (slowest answer {:.1} ms)",
            self.slowest.as_secs_f64() * 1000.0
        )?;
        self.faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}
