//! Requests to a hub and to where it sends: each with time limits, repeated where that helps, and the token to nobody but
//! the hub.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use reqwest::header::{AUTHORIZATION, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::answer::{Refusal, check_is_no_page, lost, next_page, parse, read, unless_interrupted};
use super::call::Call;
use super::fault::Fault;
use super::pause::Patience;
use super::remembered::{Page, Remembered};
use super::token::Token;
use crate::error::input;
use crate::hub::progress::Observer;

/// A request is sent on so often at most.
const MAX_REDIRECTS: usize = 5;
/// An answer that begins and does not end is asked for so often at most.
const MAX_READS: u32 = 3;
/// How long a token is taken for good that the hub has called good.
const TOKEN_IS_GOOD_FOR: Duration = Duration::from_secs(600);
pub(super) const USER_AGENT: &str = concat!("assay/", env!("CARGO_PKG_VERSION"));

/// An answer that has come down to its end.
struct Whole {
    status: StatusCode,
    /// Where it came from in the end.
    url: Url,
    headers: HeaderMap,
    bytes: Vec<u8>,
}

/// A hub that is asked over HTTP.
pub(super) struct Http {
    client: Client,
    /// For requests with a body: the client's limit on reading would end a long one.
    sender: Client,
    endpoint: Url,
    token: Option<Token>,
    token_was_good: Mutex<Option<Instant>>,
    remembered: Remembered,
    pub(super) patience: Patience,
    /// Who is told why nothing moves, and how far transfers are.
    pub(super) observer: Observer,
}

impl Http {
    /// A client of the hub at an address.
    ///
    /// # Errors
    /// The address is none, or one where everybody on the way would see the token.
    pub(super) fn new(endpoint: &str, token: Option<Token>, patience: Patience, observer: Observer) -> Result<Self> {
        Self::named("hub.endpoint (or HF_ENDPOINT)", super::ENDPOINT, endpoint, token, patience, observer)
    }

    /// The same of an address that errors call `name`, which would be right as `example`.
    pub(super) fn named(
        name: &str,
        example: &str,
        endpoint: &str,
        token: Option<Token>,
        patience: Patience,
        observer: Observer,
    ) -> Result<Self> {
        let parsed = Url::parse(endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let endpoint = parsed
            .filter(|url| url.username().is_empty() && url.password().is_none())
            .ok_or_else(|| input(format!("{name} is no address of a hub: write it as {example}, without a token")))?;
        if endpoint.scheme() == "http" && token.is_some() && !is_this_machine(&endpoint) {
            let host = endpoint.host_str().unwrap_or_default();
            return Err(input(format!(
                "{name} leads to {host} without encryption, where others would see the token: write it as https://{host}, or \
                 use no token"
            )));
        }
        // Redirects are followed here, without the token.
        let client =
            || Client::builder().user_agent(USER_AGENT).connect_timeout(patience.connect).redirect(Policy::none());
        let build = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|error| anyhow::anyhow!("no connections can be made: {error}"))
        };
        Ok(Self {
            client: build(client().read_timeout(patience.stall))?,
            sender: build(client())?,
            endpoint,
            token,
            token_was_good: Mutex::default(),
            remembered: Remembered::default(),
            patience,
            observer,
        })
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

    /// What the hub tells of a repository `namespace/name`, or of something below it.
    pub(super) fn model_url(&self, repo_id: &str, below: &[&str]) -> Url {
        self.url(["api", "models"].into_iter().chain(repo_id.split('/')).chain(below.iter().copied()))
    }

    /// The answer to a GET, as JSON of at most so many bytes.
    pub(super) async fn get_json<T: DeserializeOwned>(&self, url: Url, max_bytes: usize) -> Result<T, Fault> {
        parse(&self.get_page(url, max_bytes).await?.bytes)
    }

    /// The answer to a GET of at most so many bytes, and where it goes on. One that had an ETag is remembered, and sent by
    /// the hub again only if it has changed.
    pub(super) async fn get_page(&self, url: Url, max_bytes: usize) -> Result<Arc<Page>, Fault> {
        let mut call = Call::new(Method::GET, url.clone());
        let known = self.remembered.get(&url);
        if let Some((etag, _)) = &known {
            call.headers.insert(IF_NONE_MATCH, etag.clone());
        }
        let Whole { status, url: from, headers, bytes } = self.whole(&call, max_bytes).await?;
        if status == StatusCode::NOT_MODIFIED {
            let unasked = || Fault::Lost("it says that nothing has changed, which it was not asked".to_owned());
            return known.map(|(_, page)| page).ok_or_else(unasked);
        }
        let etag = headers.get(ETAG).cloned();
        let page = Arc::new(Page { bytes, next: next_page(&from, &headers)? });
        if let Some(etag) = etag {
            self.remembered.put(url, etag, Arc::clone(&page));
        }
        Ok(page)
    }

    /// The answer to a request, as JSON of at most so many bytes.
    pub(super) async fn ask<T: DeserializeOwned>(&self, call: &Call, max_bytes: usize) -> Result<T, Fault> {
        parse(&self.whole(call, max_bytes).await?.bytes)
    }

    /// The body of the answer to a request that is made once, whatever kind of text it is.
    pub(super) async fn once(&self, call: &Call, max_bytes: usize) -> Result<Vec<u8>, Fault> {
        let answer = self.follow(call).await?;
        if answer.status().as_u16() >= 400 {
            let is_at_hub = answer.url().origin() == self.endpoint.origin();
            return Err(Fault::Refused(Refusal::of(answer, is_at_hub).await));
        }
        read(answer, max_bytes).await
    }

    /// The answer to a request down to its end. One that was cut off is asked for again, where the request may be repeated.
    async fn whole(&self, call: &Call, max_bytes: usize) -> Result<Whole, Fault> {
        let mut tries = 1;
        loop {
            let answer = self.send(call).await?;
            check_is_no_page(answer.headers())?;
            let (status, url, headers) = (answer.status(), answer.url().clone(), answer.headers().clone());
            match read(answer, max_bytes).await {
                Ok(bytes) => return Ok(Whole { status, url, headers, bytes }),
                Err(fault @ Fault::Lost(_)) if call.repeats && tries < MAX_READS => {
                    self.rest(self.patience.pause(tries), &fault).await?;
                }
                Err(fault) => return Err(fault),
            }
            tries += 1;
        }
    }

    /// Makes a request until it has an answer that is no fault of a moment.
    ///
    /// A hub that does not know our token says of everything that it is not for us to see. So that this is not taken for an
    /// answer about what was asked, the hub is then asked about the token.
    pub(super) async fn send(&self, call: &Call) -> Result<Response, Fault> {
        match self.insist(call).await {
            Err(Fault::Refused(refusal)) if refusal.status == StatusCode::UNAUTHORIZED && refusal.is_hubs => {
                self.check_token().await?;
                Err(Fault::Refused(refusal))
            }
            answer => answer,
        }
    }

    /// Asks the hub whether it takes our token, if there is one.
    async fn check_token(&self) -> Result<(), Fault> {
        if self.token.is_none() {
            return Ok(());
        }
        let mut was_good = self.token_was_good.lock().await;
        if was_good.is_some_and(|at| at.elapsed() < TOKEN_IS_GOOD_FOR) {
            return Ok(());
        }
        match self.insist(&Call::new(Method::GET, self.url(["api", "whoami-v2"]))).await {
            Err(Fault::Refused(refusal)) if refusal.is_hubs && refusal.status == StatusCode::UNAUTHORIZED => {
                return Err(Fault::BadToken);
            }
            // A hub that does not answer that question at all.
            Err(Fault::Refused(refusal)) if refusal.is_hubs && refusal.is_final() => {}
            Err(fault) => return Err(fault),
            Ok(_) => {}
        }
        *was_good = Some(Instant::now());
        Ok(())
    }

    async fn insist(&self, call: &Call) -> Result<Response, Fault> {
        let mut tries = 1;
        loop {
            let (fault, may_be_done, asked) = match self.follow(call).await {
                Ok(answer) if answer.status().is_success() || answer.status() == StatusCode::NOT_MODIFIED => {
                    return Ok(answer);
                }
                Ok(answer) => {
                    let is_at_hub = answer.url().origin() == self.endpoint.origin();
                    let refusal = Refusal::of(answer, is_at_hub).await;
                    if refusal.is_final() {
                        return Err(Fault::Refused(refusal));
                    }
                    let asked = refusal.asked_pause;
                    let may_be_done = !matches!(refusal.status.as_u16(), 429 | 503);
                    (Fault::Refused(refusal), may_be_done, asked)
                }
                Err(Fault::Lost(reason)) => (Fault::Lost(reason), true, None),
                Err(fault) => return Err(fault),
            };
            let pause = self.patience.pause_of(tries, asked);
            if tries >= self.patience.tries || (may_be_done && !call.repeats) || pause > self.patience.longest_pause {
                return Err(fault);
            }
            self.rest(pause, &fault).await?;
            tries += 1;
        }
    }

    /// Makes a request once, and follows to where the answer sends.
    async fn follow(&self, call: &Call) -> Result<Response, Fault> {
        let mut url = call.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let client = if call.body.is_some() { &self.sender } else { &self.client };
            let mut headers = call.headers.clone();
            if url.origin() != call.url.origin() {
                headers.remove(AUTHORIZATION);
            }
            if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.endpoint.origin()) {
                headers.entry(AUTHORIZATION).or_insert_with(|| token.header());
            }
            let mut request = client.request(call.method.clone(), url.clone()).headers(headers);
            if let Some(body) = &call.body {
                request = request.body(body());
            }
            let answer = self.first_part(request.send(), &call.sent).await?;
            if !answer.status().is_redirection() || answer.status() == StatusCode::NOT_MODIFIED {
                return Ok(answer);
            }
            url = Self::destination(&url, answer.status(), answer.headers().get(LOCATION), &call.method)?;
        }
        Err(Fault::Lost(format!("it sends elsewhere more than {MAX_REDIRECTS} times")))
    }

    /// Where an answer from `url` sends; never from an encrypted connection to one that is not.
    pub(super) fn destination(
        url: &Url,
        status: StatusCode,
        location: Option<&HeaderValue>,
        method: &Method,
    ) -> Result<Url, Fault> {
        let keeps_method = matches!(status.as_u16(), 307 | 308) || matches!(*method, Method::GET | Method::HEAD);
        let next = location.and_then(|location| url.join(location.to_str().ok()?).ok());
        let next = next.filter(|next| keeps_method && matches!(next.scheme(), "http" | "https") && next.has_host());
        let next = next.ok_or_else(|| Fault::Lost("it sends elsewhere, and not to where".to_owned()))?;
        if (url.scheme(), next.scheme()) == ("https", "http") {
            let host = next.host_str().unwrap_or("nobody");
            return Err(Fault::Lost(format!("it sends to an unencrypted address of {host}")));
        }
        Ok(next)
    }

    /// Waits for the beginning of an answer, from when the last of a body has gone out.
    async fn first_part(
        &self,
        sending: impl Future<Output = reqwest::Result<Response>>,
        sent: &AtomicU64,
    ) -> Result<Response, Fault> {
        let timed = async {
            let mut sending = std::pin::pin!(sending);
            loop {
                let sent_before = sent.load(Ordering::Relaxed);
                match tokio::time::timeout(self.patience.answer, &mut sending).await {
                    Ok(answer) => return answer.map_err(lost),
                    Err(_) if sent.load(Ordering::Relaxed) != sent_before => {}
                    Err(_) => {
                        let seconds = self.patience.answer.as_secs_f32();
                        return Err(Fault::Lost(format!("no answer within {seconds} s")));
                    }
                }
            }
        };
        unless_interrupted(timed).await
    }
}

/// Whether an address leads no further than here.
fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}
