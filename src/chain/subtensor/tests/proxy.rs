//! A node's messages as they pass by: each can be delayed, swallowed, replaced, or the last before the connection is cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    Node,
    Client,
}

/// What becomes of a message.
pub(super) enum Verdict {
    Pass,
    /// It does not arrive, and the connection is cut.
    Cut,
    /// It arrives, and the connection is cut.
    PassAndCut,
    /// It does not arrive.
    Swallow,
    /// Another one arrives.
    Instead(String),
    /// It does not arrive, and the client gets this.
    Answer(String),
}

type Rule = Box<dyn FnMut(To, &str) -> Verdict + Send>;

/// The proxy.
pub(super) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    /// Where new connections lead; `None` refuses them.
    node: Mutex<Option<SocketAddr>>,
    rule: Mutex<Rule>,
    delay: Duration,
    num_connections: AtomicUsize,
    /// Waits, one after the other: requests that were sent after something had come back.
    num_waits: AtomicUsize,
    something_came: AtomicBool,
    is_over: AtomicBool,
}

impl Proxy {
    /// Before a node; every message takes so long.
    pub(super) fn before(node: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            node: Mutex::new(Some(node)),
            rule: Mutex::new(Box::new(|_, _| Verdict::Pass)),
            delay,
            num_connections: AtomicUsize::new(0),
            num_waits: AtomicUsize::new(0),
            something_came: AtomicBool::new(true),
            is_over: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let node = *accepting.node.lock().unwrap();
                if let (Ok(client), Some(node)) = (client, node) {
                    accepting.num_connections.fetch_add(1, Ordering::SeqCst);
                    connect(client, node, &accepting);
                }
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub(super) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// What becomes of messages from now on.
    pub(super) fn rule(&self, rule: impl FnMut(To, &str) -> Verdict + Send + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
    }

    /// Where connections lead from now on; `None` refuses them.
    pub(super) fn lead_to(&self, node: Option<SocketAddr>) {
        *self.shared.node.lock().unwrap() = node;
    }

    /// Refuses connections from the next on, from within a rule.
    pub(super) fn closer(&self) -> impl Fn() + Send + 'static {
        let shared = Arc::clone(&self.shared);
        move || *shared.node.lock().unwrap() = None
    }

    /// The connections so far.
    pub(super) fn num_connections(&self) -> usize {
        self.shared.num_connections.load(Ordering::SeqCst)
    }

    /// The waits so far.
    pub(super) fn num_waits(&self) -> usize {
        self.shared.num_waits.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        TcpStream::connect(self.address).ok();
    }
}

fn connect(client: TcpStream, node: SocketAddr, shared: &Arc<Shared>) {
    let Ok(node) = TcpStream::connect(node) else { return };
    for stream in [&client, &node] {
        stream.set_nodelay(true).unwrap();
    }
    let (to_client, to_node) = (lane(&client, shared.delay), lane(&node, shared.delay));
    for (from, to, lanes) in
        [(&client, To::Node, (to_node.clone(), to_client.clone())), (&node, To::Client, (to_client, to_node))]
    {
        let (mut from, shared) = (from.try_clone().unwrap(), Arc::clone(shared));
        thread::spawn(move || {
            pump(&mut from, to, &lanes.0, &lanes.1, &shared);
            for lane in [&lanes.0, &lanes.1] {
                lane.send(None).ok();
            }
        });
    }
}

type Lane = Sender<Option<(Instant, Vec<u8>)>>;

/// Writes what comes in when it is due; nothing means the end of the connection.
fn lane(stream: &TcpStream, delay: Duration) -> Lane {
    let mut stream = stream.try_clone().unwrap();
    let (sender, receiver) = channel::<Option<(Instant, Vec<u8>)>>();
    thread::spawn(move || {
        while let Ok(Some((came, bytes))) = receiver.recv() {
            thread::sleep((came + delay).saturating_duration_since(Instant::now()));
            if stream.write_all(&bytes).is_err() {
                break;
            }
        }
        stream.shutdown(Shutdown::Both).ok();
    });
    sender
}

fn pump(from: &mut TcpStream, to: To, onward: &Lane, back: &Lane, shared: &Shared) -> Option<()> {
    let send = |lane: &Lane, bytes: Vec<u8>| lane.send(Some((Instant::now(), bytes))).ok();
    send(onward, handshake(from)?)?;
    loop {
        let Frame { raw, text } = Frame::read(from)?;
        let Some(text) = text else {
            send(onward, raw)?;
            continue;
        };
        let verdict = (shared.rule.lock().unwrap())(to, &text);
        match to {
            To::Client => shared.something_came.store(true, Ordering::SeqCst),
            To::Node if shared.something_came.swap(false, Ordering::SeqCst) => {
                shared.num_waits.fetch_add(1, Ordering::SeqCst);
            }
            To::Node => (),
        }
        match verdict {
            Verdict::Pass => send(onward, raw)?,
            Verdict::Cut => return None,
            Verdict::PassAndCut => {
                send(onward, raw)?;
                // Long enough for the other side to take it up.
                thread::sleep(Duration::from_millis(20));
                return None;
            }
            Verdict::Swallow => (),
            Verdict::Instead(other) => send(onward, Frame::unmasked(&other))?,
            Verdict::Answer(answer) => send(back, Frame::unmasked(&answer))?,
        }
    }
}

/// The head of the HTTP message that a connection begins with.
fn handshake(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        from.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(head)
}

/// A frame of WebSocket (RFC 6455).
struct Frame {
    raw: Vec<u8>,
    /// What it says, if it is a message.
    text: Option<String>,
}

impl Frame {
    fn read(from: &mut TcpStream) -> Option<Self> {
        let mut raw = Vec::new();
        let mut take = |raw: &mut Vec<u8>, len: usize| {
            let start = raw.len();
            raw.resize(start + len, 0);
            from.read_exact(&mut raw[start..]).ok()?;
            Some(raw[start..].to_vec())
        };
        let head = take(&mut raw, 2)?;
        let len = match head[1] & 0x7f {
            126 => take(&mut raw, 2)?.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)),
            127 => take(&mut raw, 8)?.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)),
            len => usize::from(len),
        };
        let mask = if head[1] & 0x80 != 0 { take(&mut raw, 4)? } else { vec![0; 4] };
        let payload = take(&mut raw, len)?;
        let plain: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        let is_message = matches!(head[0] & 0x0f, 0..=2);
        Some(Self { raw, text: is_message.then(|| String::from_utf8_lossy(&plain).into_owned()) })
    }

    fn unmasked(text: &str) -> Vec<u8> {
        let len = text.len() as u64;
        let mut frame = vec![0x81];
        match len {
            0..126 => frame.push(len as u8),
            126..65_536 => frame.extend([&[126], &(len as u16).to_be_bytes()[..]].concat()),
            _ => frame.extend([&[127], &len.to_be_bytes()[..]].concat()),
        }
        frame.extend(text.as_bytes());
        frame
    }
}
