//! A request to a hub, or to where it sends.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Body, Method, Url};

/// A request.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// Made anew for each try; `None`: no body.
    pub(super) body: Option<Box<dyn Fn() -> Body + Send + Sync>>,
    /// Bytes of the body that have gone out so far, where it is long: who makes it counts them. As long as they grow, the
    /// answer is waited for.
    pub(super) sent: Arc<AtomicU64>,
    /// Whether to make it again although it may have been done: where no answer came back.
    pub(super) repeats: bool,
}

impl Call {
    /// A request without a body.
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: None, sent: Arc::default(), repeats: true }
    }

    /// With a body that is sent from memory.
    pub(super) fn with_bytes(mut self, content_type: &'static str, bytes: Vec<u8>) -> Self {
        let bytes = Bytes::from(bytes);
        self.headers.insert(CONTENT_TYPE, content_type.parse().expect("a header"));
        self.body = Some(Box::new(move || Body::from(bytes.clone())));
        self
    }

    /// Not made again once it may have been done.
    pub(super) fn once(mut self) -> Self {
        self.repeats = false;
        self
    }
}
