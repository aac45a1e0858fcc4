//! Who may ask: no web page but this machine's own, as [`loopback`](crate::local::loopback) tells them.

use std::pin::Pin;
use std::task::{Context, Poll};

use jsonrpsee::server::http::response::denied;
use jsonrpsee::server::{HttpRequest, HttpResponse};
use tower::{Layer, Service};

use crate::local::loopback::is_own_origin;

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
        if origins.all(|origin| origin.to_str().is_ok_and(is_own_origin)) {
            return Box::pin(self.0.call(request));
        }
        Box::pin(async { Ok(denied()) })
    }
}
