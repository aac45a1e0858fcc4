//! Answers that something happens to on their way.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future, stream};

use super::seams::Fate;

/// So long a connection stays after the last bytes before it is cut, in which they are sent.
const LINGER: Duration = Duration::from_millis(20);

/// What a fate makes of an answer, of which it leaves the beginning.
pub(super) fn disturb(fate: Fate, answer: Response) -> Response {
    let (mut head, body) = answer.into_parts();
    let told = head.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let bytes = body.into_data_stream().map(|part| part.map_err(io::Error::other));
    let body = match fate {
        Fate::GoOn | Fate::Cut | Fate::Never | Fate::Say(_) => Body::from_stream(bytes),
        Fate::CutAfter(count) => {
            let cut = stream::once(async {
                tokio::time::sleep(LINGER).await;
                Err(io::Error::other("cut"))
            });
            Body::from_stream(first(bytes, count).chain(cut))
        }
        Fate::Slow { bytes: count, pause } => Body::from_stream(slow(bytes, count.max(1), pause)),
        Fate::Flip(at) => {
            let at = told.map_or(at, |length| at % length.max(1));
            Body::from_stream(flip(bytes, move |place| place == at))
        }
        Fate::Garbage => Body::from_stream(flip(bytes, |_| true)),
        Fate::Shorter(count) => {
            let left = told.unwrap_or_default().saturating_sub(count);
            head.headers.insert(header::CONTENT_LENGTH, left.into());
            Body::from_stream(first(bytes, left))
        }
        Fate::Longer(count) => {
            head.headers.insert(header::CONTENT_LENGTH, told.unwrap_or_default().saturating_add(count).into());
            let zeros = vec![0; usize::try_from(count).unwrap_or(usize::MAX)];
            Body::from_stream(bytes.chain(stream::once(future::ready(Ok(zeros.into())))))
        }
        Fate::Etag(etag) => {
            if let Ok(value) = HeaderValue::from_str(&etag) {
                for name in [header::ETAG, HeaderName::from_static("x-linked-etag")] {
                    head.headers.insert(name, value.clone());
                }
            }
            Body::from_stream(bytes)
        }
    };
    Response::from_parts(head, body)
}

/// The first bytes of a body.
fn first(
    bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    count: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((Box::pin(bytes), count), |(mut bytes, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let Some(mut part) = bytes.next().await.transpose()? else { return Ok(None) };
        part.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - part.len() as u64;
        Ok(Some((part, (bytes, left))))
    })
}

/// A body whose bytes at some places have all bits flipped.
fn flip(
    bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    is_flipped: impl Fn(u64) -> bool + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let mut place = 0;
    bytes.map(move |part| {
        let mut part = Vec::from(part?);
        for byte in &mut part {
            if is_flipped(place) {
                *byte = !*byte;
            }
            place += 1;
        }
        Ok(part.into())
    })
}

/// A body that comes in small parts, each after a pause.
fn slow(
    bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    count: usize,
    pause: Duration,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((Box::pin(bytes), Bytes::new()), move |(mut bytes, mut rest)| async move {
        if rest.is_empty() {
            let Some(part) = bytes.next().await.transpose()? else { return Ok(None) };
            rest = part;
        }
        tokio::time::sleep(pause).await;
        let part = rest.split_to(count.min(rest.len()));
        Ok(Some((part, (bytes, rest))))
    })
}
