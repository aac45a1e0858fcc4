//! The viewer of Hugging Face's data sets, which validators read their pages from: one request, made once. Whoever asks
//! decides whether to ask again.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode, Url};
use tokio::runtime::Runtime;

use super::call::Call;
use super::fault::Fault;
use super::http::Http;
use super::pause::Patience;
use super::token::Token;
use crate::error::{Failure, failure, input};
use crate::hub::progress::{Observer, Told};

/// Where Hugging Face's viewer is.
pub const VIEWER_ENDPOINT: &str = "https://datasets-server.huggingface.co";

/// Rows that one answer has, as many as the viewer gives at most.
pub const PAGE_ROWS: u64 = 100;

/// Such a page has some hundred kilobytes, and the viewer cuts what would have many more.
const MAX_BYTES: usize = 64 << 20;

/// The rows of one data set.
pub struct Viewer {
    runtime: Runtime,
    http: Http,
    dataset: String,
}

/// Why a request brought nothing.
#[derive(Debug)]
pub struct Unanswered {
    /// What is told where it is not made again.
    pub error: anyhow::Error,
    /// How long the viewer asks to wait before it is.
    pub asked_pause: Option<Duration>,
    /// Whether the viewer would say the same again: what is asked for is not there, or not for us to see, or too large.
    pub is_final: bool,
}

impl Unanswered {
    /// Whether it is because an orderly end was asked for.
    pub fn is_interrupt(&self) -> bool {
        matches!(failure(&self.error), Some(Failure::Interrupted(_)))
    }
}

impl Viewer {
    /// A client of the viewer at an address, which is not asked yet. Its `patience` tells the time limits of a request.
    ///
    /// # Errors
    /// The address is none, or one where everybody on the way would see the token.
    pub fn new(
        endpoint: &str,
        dataset: &str,
        token: Option<Token>,
        patience: Patience,
        observer: Observer,
    ) -> Result<Self> {
        let http = Http::named("data.rows_endpoint", VIEWER_ENDPOINT, endpoint, token, patience, observer)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("viewer")
            .enable_all()
            .build()
            .context("the threads that ask the data set's viewer cannot be started")?;
        Ok(Self { runtime, http, dataset: dataset.to_owned() })
    }

    /// Its address, without a slash at its end.
    pub fn endpoint(&self) -> &str {
        self.http.endpoint()
    }

    /// The data set, as the hub names it.
    pub fn dataset(&self) -> &str {
        &self.dataset
    }

    /// Nobody is waited for any longer than this.
    pub fn longest_pause(&self) -> Duration {
        self.http.patience.longest_pause
    }

    /// Tells the user something.
    pub fn tell(&self, told: Told<'_>) {
        self.http.observer.tell(told);
    }

    /// The body of the answer to one request for the rows from `offset` on, from any thread.
    ///
    /// # Errors
    /// There was no answer in time, it broke off, or its status is 400 or above. An answer that is no page is none here.
    pub fn ask(&self, offset: u64) -> Result<Vec<u8>, Unanswered> {
        let call = Call::new(Method::GET, self.url(offset));
        let answer = self.runtime.block_on(self.http.once(&call, MAX_BYTES));
        answer.map_err(|fault| self.unanswered(fault, offset))
    }

    /// The reference's request, down to the order of its parameters.
    fn url(&self, offset: u64) -> Url {
        let mut url = self.http.url(["rows"]);
        url.query_pairs_mut()
            .append_pair("dataset", &self.dataset)
            .append_pair("config", "default")
            .append_pair("split", "train")
            .append_pair("offset", &offset.to_string())
            .append_pair("limit", &PAGE_ROWS.to_string());
        url
    }

    fn unanswered(&self, fault: Fault, offset: u64) -> Unanswered {
        let (asked_pause, is_final, is_of_token) = match &fault {
            Fault::Refused(refusal) => {
                let is_final = refusal.is_hubs && refusal.is_final();
                let is_of_token = is_final && refusal.status == StatusCode::UNAUTHORIZED && self.http.token().is_some();
                (refusal.asked_pause, is_final, is_of_token)
            }
            fault => (None, matches!(fault, Fault::TooLong(_)), false),
        };
        let what = format!("the rows of {} from {offset} on could not be read", self.dataset);
        let error = match fault {
            Fault::TooLong(bytes) => input(format!(
                "{what}: the answer of {} has more than {bytes} bytes; read its shards instead, by data.source: \
                 refinedweb-parquet",
                self.endpoint()
            )),
            _ if is_of_token => self.http.error(Fault::BadToken, &what),
            fault => self.http.error(fault, &what),
        };
        Unanswered { error, asked_pause, is_final }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::tests::server::{Reply, Server};
    use super::super::tests::{SECRET, patience};
    use super::*;
    use crate::error::exit_code;

    fn viewer(endpoint: &str, token: Option<&str>) -> Result<Viewer> {
        let token = token.map(|secret| Token::new(secret, "the test").unwrap());
        Viewer::new(endpoint, "tiiuae/falcon-refinedweb", token, patience(), Observer::default())
    }

    #[test]
    fn the_request_is_the_references() {
        assert_eq!(
            viewer(VIEWER_ENDPOINT, None).unwrap().url(5).as_str(),
            "https://datasets-server.huggingface.co/rows?dataset=tiiuae%2Ffalcon-refinedweb&config=default&split=train\
             &offset=5&limit=100"
        );
    }

    #[test]
    fn a_request_is_made_once_and_says_why_it_brought_nothing() {
        let answers: [(Reply, u8, bool, Option<u64>, &str); 7] = [
            (Reply::refusal(404, "DatasetNotFound"), 4, true, None, "404 Not Found, DatasetNotFound in words"),
            (Reply::new(404, "nothing"), 3, false, None, "404 Not Found, but not as a hub does"),
            (Reply::refusal(500, "ResponseNotReady"), 3, false, None, "500 Internal Server Error"),
            (
                Reply::new(429, "").header("retry-after", "7"),
                3,
                false,
                Some(7),
                "429 Too Many Requests; it asks to wait 7 s",
            ),
            (Reply::refusal(401, "ExternalUnauthenticatedError"), 2, true, None, "does not take the token of the test"),
            (Reply::new(200, "{}").cut(1).length(Some(2)), 3, false, None, "would not answer"),
            (
                Reply::new(200, vec![b' '; MAX_BYTES + 1]),
                2,
                true,
                None,
                "has more than 67108864 bytes; read its shards",
            ),
        ];
        for (reply, code, is_final, pause, sentence) in answers {
            let server = Server::start(move |_| reply.clone());
            let unanswered = viewer(&server.endpoint(), Some(SECRET)).unwrap().ask(9).unwrap_err();
            let text = unanswered.error.to_string();
            assert!(text.starts_with("the rows of tiiuae/falcon-refinedweb from 9 on could not be read: "), "{text}");
            assert!(text.contains(sentence) && !text.contains(SECRET), "{text}");
            assert_eq!((exit_code(&unanswered.error), unanswered.is_final), (code, is_final), "{text}");
            assert_eq!(unanswered.asked_pause, pause.map(Duration::from_secs));
            assert_eq!(server.requests().len(), 1);
        }
    }

    #[test]
    fn the_token_goes_to_the_viewer_and_to_nobody_that_it_sends_to() {
        let other = Server::start(|_| Reply::new(200, "{\"rows\": []}"));
        let to = other.endpoint();
        let server = Server::start(move |_| Reply::redirect(format!("{to}/elsewhere")));
        let viewer = viewer(&server.endpoint(), Some(SECRET)).unwrap();
        assert_eq!(viewer.ask(0).unwrap(), b"{\"rows\": []}");
        assert_eq!(server.requests()[0].header("authorization"), Some(format!("Bearer {SECRET}").as_str()));
        assert_eq!(other.requests()[0].header("authorization"), None);
    }

    #[test]
    fn an_address_that_is_none_or_would_show_the_token_is_refused() {
        for (endpoint, sentence) in [
            ("datasets-server", "data.rows_endpoint is no address of a hub: write it as https://datasets-server"),
            ("ftp://host", "data.rows_endpoint is no address"),
            ("https://user:secret@host", "data.rows_endpoint is no address"),
            ("http://elsewhere.example", "data.rows_endpoint leads to elsewhere.example without encryption"),
        ] {
            let error = viewer(endpoint, Some(SECRET)).err().unwrap();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().starts_with(sentence), "{error}");
        }
        assert!(viewer("http://elsewhere.example", None).is_ok());
    }
}
