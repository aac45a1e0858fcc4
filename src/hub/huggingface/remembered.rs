//! Answers of the hub that are remembered with their ETags, so that one that has not changed is not sent again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reqwest::Url;
use reqwest::header::HeaderValue;

/// All of them together are no larger; the oldest goes first.
const MAX_BYTES: usize = 16 << 20;

/// An answer of the hub's API.
#[derive(Debug)]
pub(super) struct Page {
    /// Its body.
    pub(super) bytes: Vec<u8>,
    /// Where it goes on.
    pub(super) next: Option<Url>,
}

/// Answers by their addresses.
#[derive(Default)]
pub(super) struct Remembered {
    pages: Mutex<VecDeque<(Url, HeaderValue, Arc<Page>)>>,
}

impl Remembered {
    /// The answer that an address had, and its ETag.
    pub(super) fn get(&self, url: &Url) -> Option<(HeaderValue, Arc<Page>)> {
        let pages = self.pages();
        pages.iter().find(|(of, ..)| of == url).map(|(_, etag, page)| (etag.clone(), Arc::clone(page)))
    }

    /// Remembers an answer in place of the one before.
    pub(super) fn put(&self, url: Url, etag: HeaderValue, page: Arc<Page>) {
        let mut pages = self.pages();
        pages.retain(|(of, ..)| *of != url);
        pages.push_back((url, etag, page));
        let mut bytes: usize = pages.iter().map(|(_, _, page)| page.bytes.len()).sum();
        while bytes > MAX_BYTES {
            bytes -= pages.pop_front().map_or(bytes, |(_, _, page)| page.bytes.len());
        }
    }

    fn pages(&self) -> MutexGuard<'_, VecDeque<(Url, HeaderValue, Arc<Page>)>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_oldest_answers_make_room() {
        let remembered = Remembered::default();
        let url = |name: &str| Url::parse(&format!("http://hub/{name}")).unwrap();
        let put = |name: &str, len: usize| {
            let page = Page { bytes: vec![0; len], next: None };
            remembered.put(url(name), HeaderValue::from_static("\"a\""), Arc::new(page));
        };
        put("a", MAX_BYTES / 2);
        put("b", 1);
        put("a", MAX_BYTES / 2);
        put("c", MAX_BYTES / 2);
        assert!(remembered.get(&url("b")).is_none(), "the oldest stays");
        assert!(remembered.get(&url("a")).is_some_and(|(_, page)| page.bytes.len() == MAX_BYTES / 2));
        put("d", MAX_BYTES + 1);
        assert!(["a", "c", "d"].iter().all(|name| remembered.get(&url(name)).is_none()));
    }
}
