//! Requests to a hub and to where it sends: each with time limits, repeated where that helps, and the token to nobody but
//! the hub.

use std::time::Duration;

use anyhow::Result;
use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Body, Client, Method, Response, StatusCode, Url};
use serde::de::DeserializeOwned;

use super::token::Token;
use crate::error::{Failure, input};
use crate::interrupt;

/// A request is sent on so often at most.
const MAX_REDIRECTS: usize = 5;
/// How much of an error's text is told.
const MAX_MESSAGE_CHARS: usize = 300;
/// No error's text is longer.
const MAX_ERROR_BYTES: usize = 1 << 16;
const USER_AGENT: &str = concat!("assay/", env!("CARGO_PKG_VERSION"));
/// How often it is looked whether an orderly end is asked for.
const GLANCE: Duration = Duration::from_millis(100);

/// How long an answer is waited for, and how often a request is repeated.
#[derive(Clone, Debug)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the beginning of an answer.
    pub answer: Duration,
    /// For the next part of a body.
    pub stall: Duration,
    /// So often a request is made before it is given up.
    pub tries: u32,
    /// Before the second try, about; twice as long before each next one.
    pub first_pause: Duration,
    /// The longest pause; who asks for a longer one has given up on us.
    pub longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            tries: 6,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(330),
        }
    }
}

/// Why there is no good answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// There is one, and it is no.
    Refused(Refusal),
    /// There is none, or none that can be understood.
    Lost(String),
    /// An orderly end was asked for.
    Interrupted,
}

/// An answer that is no.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Its status.
    pub(super) status: StatusCode,
    /// The hub's word for it, such as `RepoNotFound`.
    pub(super) code: Option<String>,
    /// Its text, cut and without what could not be shown.
    pub(super) message: String,
}

/// A request.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// Made anew for each try; `None`: no body.
    pub(super) body: Option<Box<dyn Fn() -> Body + Send + Sync>>,
    /// Whether to make it again although it may have been done: where no answer came back.
    pub(super) repeats: bool,
}

impl Call {
    /// A request without a body.
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: None, repeats: true }
    }

    /// With a body that is sent from memory.
    pub(super) fn with_bytes(mut self, content_type: &'static str, bytes: Vec<u8>) -> Self {
        let bytes = bytes::Bytes::from(bytes);
        self.headers.insert(reqwest::header::CONTENT_TYPE, content_type.parse().expect("a header"));
        self.body = Some(Box::new(move || Body::from(bytes.clone())));
        self
    }

    /// Not made again once it may have been done.
    pub(super) fn once(mut self) -> Self {
        self.repeats = false;
        self
    }
}

/// A hub that is asked over HTTP.
pub(super) struct Http {
    client: Client,
    endpoint: Url,
    token: Option<Token>,
    pub(super) patience: Patience,
}

impl Http {
    /// A client of the hub at an address.
    pub(super) fn new(endpoint: &str, token: Option<Token>, patience: Patience) -> Result<Self> {
        let parsed = Url::parse(endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let endpoint = parsed.filter(|url| url.username().is_empty() && url.password().is_none()).ok_or_else(|| {
            input("hub.endpoint (or HF_ENDPOINT) is no address of a hub: write it as https://huggingface.co, without a token")
        })?;
        let client = Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(patience.connect)
            .read_timeout(patience.stall)
            // Redirects are followed here, without the token.
            .redirect(Policy::none())
            .build()
            .map_err(|error| anyhow::anyhow!("no connections can be made: {error}"))?;
        Ok(Self { client, endpoint, token, patience })
    }

    /// The hub's address, without a slash at its end.
    pub(super) fn endpoint(&self) -> &str {
        self.endpoint.as_str().trim_end_matches('/')
    }

    pub(super) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// An address of the hub: its segments, which may hold anything.
    pub(super) fn url<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut().expect("an address with a host has a path").pop_if_empty().extend(segments);
        url
    }

    /// The answer to a GET.
    pub(super) async fn get(&self, url: Url) -> Result<Response, Fault> {
        self.send(&Call::new(Method::GET, url)).await
    }

    /// The answer to a GET, as JSON of at most so many bytes.
    pub(super) async fn get_json<T: DeserializeOwned>(&self, url: Url, max_bytes: usize) -> Result<T, Fault> {
        json(self.get(url).await?, max_bytes).await
    }

    /// Makes a request until it has an answer that is no fault of a moment.
    pub(super) async fn send(&self, call: &Call) -> Result<Response, Fault> {
        let mut tries = 1;
        loop {
            let (fault, may_be_done, asked_pause) = match self.follow(call).await {
                Ok(answer) if answer.status().is_success() || answer.status() == StatusCode::NOT_MODIFIED => {
                    return Ok(answer);
                }
                Ok(answer) => {
                    let pause = retry_after(answer.headers());
                    let status = answer.status();
                    let refusal = Fault::Refused(Refusal::of(answer).await);
                    match status.as_u16() {
                        429 | 503 => (refusal, false, pause),
                        408 | 500 | 502 | 504 => (refusal, true, pause),
                        _ => return Err(refusal),
                    }
                }
                Err(Fault::Lost(reason)) => (Fault::Lost(reason), true, None),
                Err(fault) => return Err(fault),
            };
            let pause = asked_pause.unwrap_or_else(|| self.pause(tries));
            if tries == self.patience.tries || (may_be_done && !call.repeats) || pause > self.patience.longest_pause {
                return Err(fault);
            }
            sleep(pause).await?;
            tries += 1;
        }
    }

    /// About twice as long as the one before, with a part of it left to chance.
    pub(super) fn pause(&self, tries: u32) -> Duration {
        let whole = self.patience.first_pause.saturating_mul(1 << (tries - 1).min(16)).min(self.patience.longest_pause);
        whole.mul_f64(0.5 + 0.5 * fastrand::f64())
    }

    /// Makes a request once, and follows to where the answer sends.
    async fn follow(&self, call: &Call) -> Result<Response, Fault> {
        let mut url = call.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.client.request(call.method.clone(), url.clone()).headers(call.headers.clone());
            if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.endpoint.origin()) {
                request = request.header(AUTHORIZATION, token.header());
            }
            if let Some(body) = &call.body {
                request = request.body(body());
            }
            let answer = self.first_part(request.send(), call.body.is_some()).await?;
            if !answer.status().is_redirection() || answer.status() == StatusCode::NOT_MODIFIED {
                return Ok(answer);
            }
            let keeps_method = matches!(answer.status().as_u16(), 307 | 308)
                || call.method == Method::GET
                || call.method == Method::HEAD;
            let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok()).filter(|_| keeps_method);
            let next = next.filter(|next| matches!(next.scheme(), "http" | "https"));
            let Some(next) = next else { return Err(Fault::Lost("it sends elsewhere, and not to where".to_owned())) };
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(Fault::Lost(format!(
                    "it sends to an unencrypted address of {}",
                    next.host_str().unwrap_or("nobody")
                )));
            }
            url = next;
        }
        Err(Fault::Lost(format!("it sends elsewhere more than {MAX_REDIRECTS} times")))
    }

    /// Waits for the beginning of an answer; where a body is sent, as long as that takes.
    async fn first_part(
        &self,
        sending: impl Future<Output = reqwest::Result<Response>>,
        has_body: bool,
    ) -> Result<Response, Fault> {
        let timed = async {
            if has_body {
                return sending.await.map_err(lost);
            }
            match tokio::time::timeout(self.patience.answer, sending).await {
                Ok(answer) => answer.map_err(lost),
                Err(_) => Err(Fault::Lost(format!("no answer within {} s", self.patience.answer.as_secs_f32()))),
            }
        };
        unless_interrupted(timed).await
    }

    /// A fault as an error; `what` begins its sentence: "a/b could not be listed".
    pub(super) fn error(&self, fault: Fault, what: &str) -> anyhow::Error {
        let hub = self.endpoint();
        match fault {
            Fault::Interrupted => Failure::Interrupted(format!("{what}: interrupted")).into(),
            Fault::Lost(reason) => Failure::Unreachable(format!("{what}: {hub} would not answer ({reason})")).into(),
            Fault::Refused(refusal) => {
                let Refusal { status, message, .. } = &refusal;
                let said = format!(
                    "{what}: {hub} says {status}{}",
                    if message.is_empty() { String::new() } else { format!(", {message}") }
                );
                match status.as_u16() {
                    401 | 403 | 404 | 410 => Failure::No(said).into(),
                    429 | 500..=599 | 408 => Failure::Unreachable(said).into(),
                    _ => Failure::Input(said).into(),
                }
            }
        }
    }
}

impl Refusal {
    async fn of(answer: Response) -> Self {
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (status, code) = (answer.status(), header("x-error-code"));
        let message = match header("x-error-message") {
            Some(message) => message,
            None => {
                let text = read(answer, MAX_ERROR_BYTES).await.unwrap_or_default();
                let json: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
                json["error"].as_str().unwrap_or_default().to_owned()
            }
        };
        Self { status, code, message: shown(&message) }
    }
}

/// What a stranger says, as it can be shown: without control characters, and not for ever.
pub(super) fn shown(text: &str) -> String {
    let printable = text.chars().filter(|character| !character.is_control());
    printable.take(MAX_MESSAGE_CHARS).collect()
}

/// The whole body of an answer, of at most so many bytes.
pub(super) async fn read(mut answer: Response, max_bytes: usize) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    while let Some(part) = unless_interrupted(async { answer.chunk().await.map_err(lost) }).await? {
        if bytes.len() + part.len() > max_bytes {
            return Err(Fault::Lost(format!("its answer has more than {max_bytes} bytes")));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

/// The body of an answer as JSON.
pub(super) async fn json<T: DeserializeOwned>(answer: Response, max_bytes: usize) -> Result<T, Fault> {
    let bytes = read(answer, max_bytes).await?;
    serde_json::from_slice(&bytes).map_err(|error| Fault::Lost(format!("its answer cannot be understood: {error}")))
}

/// What went wrong with a connection, without the address, which may carry a signature.
pub(super) fn lost(error: reqwest::Error) -> Fault {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    Fault::Lost(shown(&text))
}

/// How long an answer asks to wait.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse::<f64>().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Waits; a fault where an orderly end is asked for meanwhile.
pub(super) async fn sleep(pause: Duration) -> Result<(), Fault> {
    unless_interrupted(async {
        tokio::time::sleep(pause).await;
        Ok(())
    })
    .await
}

/// Does something, unless an orderly end is asked for meanwhile.
pub(super) async fn unless_interrupted<T>(work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let interrupted = async {
        while !interrupt::requested() {
            tokio::time::sleep(GLANCE).await;
        }
    };
    tokio::select! {
        done = work => done,
        () = interrupted => Err(Fault::Interrupted),
    }
}
