//! Files on their way out, whole or a range, as hubs and their clients have it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;

use super::refusal::Refusal;

/// Bytes that are read at once.
const PART_BYTES: u64 = 1 << 20;

/// What part of a file is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Whole,
    /// From the first byte to before the second.
    Range(u64, u64),
    /// None that the file has.
    Outside,
}

/// Answers a request for a file of so many bytes: with `told`, and with what it asks for, which is nothing where it knows the
/// entity tag.
pub(super) fn answer(
    method: &Method,
    asked: &HeaderMap,
    mut told: HeaderMap,
    etag: &str,
    bytes: u64,
    open: impl FnOnce() -> Result<File, Refusal>,
) -> Result<Response, Refusal> {
    told.insert(header::ETAG, value(etag)?);
    told.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    told.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let is_known = |name| asked.get_all(name).iter().any(|value| names(value, etag));
    if is_known(header::IF_NONE_MATCH) {
        return Ok((StatusCode::NOT_MODIFIED, told).into_response());
    }
    let is_same = !asked.contains_key(header::IF_RANGE) || is_known(header::IF_RANGE);
    let range = asked.get(header::RANGE).filter(|_| is_same).and_then(|range| range.to_str().ok());
    let (status, start, end) = match part(range, bytes) {
        Part::Whole => (StatusCode::OK, 0, bytes),
        Part::Range(start, end) => (StatusCode::PARTIAL_CONTENT, start, end),
        Part::Outside => {
            let range = [(header::CONTENT_RANGE, format!("bytes */{bytes}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, told, range).into_response());
        }
    };
    let mut answer = (status, told, [(header::CONTENT_LENGTH, (end - start).to_string())]).into_response();
    if status == StatusCode::PARTIAL_CONTENT {
        answer.headers_mut().insert(header::CONTENT_RANGE, value(&format!("bytes {start}-{}/{bytes}", end - 1))?);
    }
    if method != Method::HEAD {
        *answer.body_mut() = body(open()?, start, end).map_err(anyhow::Error::from)?;
    }
    Ok(answer)
}

/// A header's value.
pub(super) fn value(text: &str) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_str(text).map_err(|error| Refusal::bad(error.to_string()))
}

/// Whether a header names an entity tag, or any.
fn names(value: &HeaderValue, etag: &str) -> bool {
    let value = value.to_str().unwrap_or_default();
    value.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
}

/// Reads a range of a file of so many bytes. What is no range, or several, is the whole file, as the standard has it.
fn part(range: Option<&str>, bytes: u64) -> Part {
    let Some((first, last)) = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
        return Part::Whole;
    };
    let (start, end) = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.saturating_add(1).min(bytes)),
        (Ok(first), Err(_)) if last.trim().is_empty() => (first, bytes),
        (Err(_), Ok(last)) if first.trim().is_empty() => (bytes.saturating_sub(last), bytes),
        _ => return Part::Whole,
    };
    if start < end { Part::Range(start, end) } else { Part::Outside }
}

/// A part of a file, read as it is sent.
fn body(mut file: File, start: u64, end: u64) -> std::io::Result<Body> {
    file.seek(SeekFrom::Start(start))?;
    Ok(Body::from_stream(stream::try_unfold((file, end - start), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let read = move || {
            let mut buffer = vec![0; left.min(PART_BYTES) as usize];
            file.read_exact(&mut buffer).map(|()| (Bytes::from(buffer), file))
        };
        let (part, file) = tokio::task::spawn_blocking(read).await??;
        let left = left - part.len() as u64;
        Ok::<_, std::io::Error>(Some((part, (file, left))))
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_has_them() {
        for (range, expected) in [
            ("bytes=0-0", Part::Range(0, 1)),
            ("bytes=2-", Part::Range(2, 10)),
            ("bytes=2-99", Part::Range(2, 10)),
            ("bytes=-3", Part::Range(7, 10)),
            ("bytes=-99", Part::Range(0, 10)),
            ("bytes=10-", Part::Outside),
            ("bytes=10-11", Part::Outside),
            ("bytes=-0", Part::Outside),
            ("bytes=5-4", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=x-", Part::Whole),
            ("lines=0-1", Part::Whole),
            ("bytes=18446744073709551615-18446744073709551615", Part::Outside),
            ("bytes=0-18446744073709551615", Part::Range(0, 10)),
            ("bytes=99999999999999999999-", Part::Whole),
        ] {
            assert_eq!(part(Some(range), 10), expected, "{range}");
        }
        assert_eq!((part(None, 10), part(Some("bytes=0-"), 0)), (Part::Whole, Part::Outside));
    }
}
