//! One question to an echo server, and a conversation of many. The question is a number, the answer the server's name
//! and that number.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crate::netns::Netns;

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Address and port.
    pub at: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
}

/// How a question ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// The server of this name answered just this question.
    Server(String),
    /// Connection refused, or port unreachable.
    Refused,
    /// Host or network unreachable.
    Unreachable,
    /// Nothing came in time.
    Silent,
    /// The connection was reset.
    Reset,
    /// The server's side ended the connection.
    Closed,
    /// Anything else, in words.
    Other(String),
}

/// A TCP connection, or a UDP socket with one address.
#[derive(Debug)]
pub struct Conversation {
    socket: Socket,
    place: Place,
    asked: u32,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

/// Source ports of UDP questions. IPVS and conntrack remember a flow for minutes, and the kernel gives a free port at
/// random: a new question must not be taken for an old one's next packet.
static UDP_PORT: AtomicU16 = AtomicU16::new(0);
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 50_000;

impl Conversation {
    /// Opens it from a namespace. For UDP nothing is sent yet.
    ///
    /// # Errors
    /// How it ended, where the TCP connection does not come about.
    pub fn open(from: &Netns, place: Place, patience: Duration) -> Result<Self, Answer> {
        from.run(|| Ok(Self::open_here(place, patience)))
            .unwrap_or_else(|error| Err(Answer::Other(format!("{error:#}"))))
    }

    /// The same from this thread's namespace.
    ///
    /// # Errors
    /// As [`Conversation::open`].
    pub fn open_here(place: Place, patience: Duration) -> Result<Self, Answer> {
        let opened = match place.protocol {
            Protocol::Tcp => connect(place.at, patience).map(Socket::Tcp),
            Protocol::Udp => bind(place.at, patience).map(Socket::Udp),
        };
        match opened {
            Ok(socket) => Ok(Self {
                socket,
                place,
                asked: 0,
            }),
            Err(error) => Err(Answer::from(&error)),
        }
    }

    /// Asks once more and waits for the answer.
    pub fn ask(&mut self) -> Answer {
        self.asked += 1;
        let question = format!("{}\n", self.asked);
        match self.exchange(question.as_bytes()) {
            Err(error) => Answer::from(&error),
            Ok(text) if text.is_empty() => Answer::Closed,
            Ok(text) => match text.strip_suffix(&question).and_then(|text| text.strip_suffix(' ')) {
                Some(name) => Answer::Server(name.to_owned()),
                None => Answer::Other(format!("{text:?} to {question:?}")),
            },
        }
    }

    /// Whom it is with.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Up to the end of the line; empty at the end of the connection.
    fn exchange(&mut self, question: &[u8]) -> io::Result<String> {
        let mut text = Vec::new();
        let mut part = [0; 256];
        match &mut self.socket {
            Socket::Udp(socket) => {
                socket.send(question)?;
                let length = socket.recv(&mut part)?;
                text.extend_from_slice(part.get(..length).unwrap_or_default());
            }
            Socket::Tcp(stream) => {
                stream.write_all(question)?;
                while text.last() != Some(&b'\n') {
                    match stream.read(&mut part) {
                        Ok(0) => break,
                        Ok(length) => text.extend_from_slice(part.get(..length).unwrap_or_default()),
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// One question by a new connection, or from a new port.
pub fn ask(from: &Netns, place: Place, patience: Duration) -> Answer {
    from.run(|| Ok(ask_here(place, patience)))
        .unwrap_or_else(|error| Answer::Other(format!("{error:#}")))
}

/// The same from this thread's namespace.
pub fn ask_here(place: Place, patience: Duration) -> Answer {
    match Conversation::open_here(place, patience) {
        Ok(mut conversation) => conversation.ask(),
        Err(answer) => answer,
    }
}

fn connect(at: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&at, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn bind(at: SocketAddr, patience: Duration) -> io::Result<UdpSocket> {
    let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = loop {
        let port = FIRST_PORT + UDP_PORT.fetch_add(1, Ordering::Relaxed) % PORTS;
        match UdpSocket::bind((any, port)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            bound => break bound?,
        }
    };
    socket.set_read_timeout(Some(patience))?;
    socket.connect(at)?;
    Ok(socket)
}

impl From<&io::Error> for Answer {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Unreachable,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Silent,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            _ => Self::Other(error.to_string()),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(name) => f.write_str(name),
            Self::Refused => f.write_str("refused"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Silent => f.write_str("silent"),
            Self::Reset => f.write_str("reset"),
            Self::Closed => f.write_str("closed"),
            Self::Other(words) => f.write_str(words),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        write!(f, "{}/{protocol}", self.at)
    }
}
