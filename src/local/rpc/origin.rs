//! Who may ask: no web page but this machine's own.
//!
//! A browser sends what any page asks for, to loopback too. It says where the page is from (`Origin`), and to which host it
//! thinks it speaks (`Host`), which gives away a page whose name leads here by a trick.

use std::pin::Pin;
use std::task::{Context, Poll};

use jsonrpsee::server::http::response::denied;
use jsonrpsee::server::{HttpRequest, HttpResponse};
use tower::{Layer, Service};

/// What this machine is called by itself.
pub(super) const OWN_HOSTS: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];

/// Refuses requests of pages from elsewhere, with 403.
#[derive(Clone, Copy)]
pub(super) struct OriginLayer;

impl<S> Layer<S> for OriginLayer {
    type Service = OriginFilter<S>;

    fn layer(&self, inner: S) -> OriginFilter<S> {
        OriginFilter(inner)
    }
}

/// What [`OriginLayer`] makes of a service.
#[derive(Clone)]
pub(super) struct OriginFilter<S>(S);

impl<S, B> Service<HttpRequest<B>> for OriginFilter<S>
where
    S: Service<HttpRequest<B>, Response = HttpResponse>,
    S::Future: Send + 'static,
{
    type Response = HttpResponse;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: HttpRequest<B>) -> Self::Future {
        let mut origins = request.headers().get_all("origin").iter();
        if origins.all(|origin| origin.to_str().is_ok_and(is_own)) {
            return Box::pin(self.0.call(request));
        }
        Box::pin(async { Ok(denied()) })
    }
}

/// Whether an origin, as SCHEME://HOST or SCHEME://HOST:PORT, is this machine.
fn is_own(origin: &str) -> bool {
    let Some((_, place)) = origin.split_once("://") else { return false };
    let host = match place.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => place,
    };
    OWN_HOSTS.iter().any(|own| host.eq_ignore_ascii_case(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_told_from_all_others() {
        for own in ["http://127.0.0.1:9944", "http://localhost", "https://LOCALHOST:1", "http://[::1]", "ws://[::1]:80"]
        {
            assert!(is_own(own), "{own}");
        }
        let others = ["http://evil.example", "http://127.0.0.1.evil.example:80", "null", "", "127.0.0.1", "http://"];
        for other in others.into_iter().chain(["http://localhost@evil.example", "file://", "http://[::2]", "http://1"])
        {
            assert!(!is_own(other), "{other}");
        }
    }
}
