//! A server that says what a test wants, byte by byte: with the wrong length, cut anywhere, or slowly.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With what follows a question mark.
    pub(crate) path: String,
    /// By their names in small letters.
    pub(crate) headers: BTreeMap<String, String>,
    /// How many came to this server before it.
    pub(crate) index: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// From where on a file is asked for.
    pub(crate) fn start(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |start| start.parse().unwrap())
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    length: Option<usize>,
    cut: usize,
    drip: Option<Duration>,
    delay: Duration,
    linger: Duration,
    is_silent: bool,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let (length, cut) = (Some(body.len()), usize::MAX);
        Self {
            status,
            headers: Vec::new(),
            body,
            length,
            cut,
            drip: None,
            delay: Duration::ZERO,
            linger: Duration::ZERO,
            is_silent: false,
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Its body.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// What one of its headers says.
    pub(crate) fn header_value(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str())
    }

    /// With another Content-Length than it has; `None`: without any.
    pub(crate) fn length(self, length: Option<usize>) -> Self {
        Self { length, ..self }
    }

    /// Ends the connection after so many bytes of the body.
    pub(crate) fn cut(self, cut: usize) -> Self {
        Self { cut, ..self }
    }

    /// A byte at a time, with a pause after each.
    pub(crate) fn drip(self, pause: Duration) -> Self {
        Self { drip: Some(pause), ..self }
    }

    /// Not before so long.
    pub(crate) fn delay(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// No answer at all: hangs up after so long.
    pub(crate) fn silent(linger: Duration) -> Self {
        Self { is_silent: true, ..Self::new(200, "").linger(linger) }
    }

    /// Stays connected for so long after the last byte.
    pub(crate) fn linger(self, linger: Duration) -> Self {
        Self { linger, ..self }
    }

    /// Sends elsewhere.
    pub(crate) fn redirect(to: String) -> Self {
        Self::new(302, "").header("location", to)
    }

    /// A hub's no.
    pub(crate) fn refusal(status: u16, code: &str) -> Self {
        Self::new(status, format!("{{\"error\":\"{code} in words\"}}")).header("x-error-code", code)
    }

    /// What a request asks for of a file.
    pub(crate) fn file(request: &Request, content: &[u8], etag: &str) -> Self {
        let is_same = request.header("if-range").is_none_or(|wanted| wanted == etag);
        let start = request.start();
        let reply = if start == 0 || !is_same {
            Self::new(200, content)
        } else if start >= content.len() {
            Self::new(416, "")
        } else {
            let (last, total) = (content.len() - 1, content.len());
            Self::new(206, &content[start..]).header("content-range", format!("bytes {start}-{last}/{total}"))
        };
        reply.header("etag", etag)
    }

    fn send(&self, stream: &mut TcpStream, num_sent: &AtomicU64) -> std::io::Result<()> {
        thread::sleep(self.delay);
        if self.is_silent {
            thread::sleep(self.linger);
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} status\r\nconnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(length) = self.length {
            head += &format!("content-length: {length}\r\n");
        }
        stream.write_all((head + "\r\n").as_bytes())?;
        let body = &self.body[..self.body.len().min(self.cut)];
        for part in body.chunks(if self.drip.is_some() { 1 } else { 32 << 10 }) {
            // Counted first: whoever has the last byte may ask for the number before this thread goes on.
            num_sent.fetch_add(part.len() as u64, Ordering::SeqCst);
            stream.write_all(part)?;
            self.drip.into_iter().for_each(thread::sleep);
        }
        thread::sleep(self.linger);
        Ok(())
    }
}

/// A server on loopback, until it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    num_sent: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, num_sent, is_over) = (Arc::default(), Arc::default(), Arc::new(AtomicBool::new(false)));
        let (seen, sent, over) = (Arc::clone(&requests), Arc::clone(&num_sent), Arc::clone(&is_over));
        let answer = Arc::new(answer);
        let listener = thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (answer, seen, sent) = (Arc::clone(&answer), Arc::clone(&seen), Arc::clone(&sent));
                thread::spawn(move || serve(stream.unwrap(), answer.as_ref(), &seen, &sent));
            }
        });
        Self { address, requests, num_sent, is_over, listener: Some(listener) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Bytes of bodies that were sent so far.
    pub(crate) fn num_sent(&self) -> u64 {
        self.num_sent.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.listener.take().map(JoinHandle::join);
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &(impl Fn(&Request) -> Reply + ?Sized),
    requests: &Mutex<Vec<Request>>,
    num_sent: &AtomicU64,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap_or_default();
        line.trim_end().to_owned()
    };
    let first = line();
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    let mut headers = BTreeMap::new();
    while let Some((name, value)) = line().split_once(':') {
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    std::io::copy(&mut reader.take(length), &mut std::io::sink()).unwrap();
    let request = {
        let mut requests = requests.lock().unwrap();
        let index = requests.len();
        requests.push(Request { method, path, headers, index });
        requests.last().unwrap().clone()
    };
    // Whoever has hung up does not want the rest.
    let _ = answer(&request).send(&mut stream, num_sent);
    let _ = stream.shutdown(Shutdown::Both);
}
