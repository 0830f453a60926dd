//! A GET of the API server: its answer, or what kept it from one.

use std::time::Duration;

use bytes::BytesMut;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::timeout;

use crate::connection::Connection;
use crate::failure::{Failure, Status};

pub(crate) const JSON: &str = "application/json";
/// A server's wish to be left alone counts up to this.
const LONGEST_RETRY_AFTER: u64 = 30;

/// Asks for a path with its query.
///
/// # Errors
/// No answer within the patience for one, or a status that is not 2xx. 410 is [`Failure::Expired`].
pub(crate) async fn get(connection: &Connection, uri: String, accept: &str) -> Result<Response<Body>, Failure> {
    let patience = connection.patience().response;
    let response = loop {
        let request = Request::get(&uri)
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, concat!("kube-ipvs/", env!("CARGO_PKG_VERSION")))
            .body(Body::empty())
            .map_err(|error| Failure::Request(error.into()))?;
        tokio::select! {
            answer = timeout(patience, connection.client.send(request)) => break answer,
            () = connection.peers().until_freed() => {}
        }
    };
    let response = response
        .map_err(|_| Failure::Silence(patience))?
        .map_err(|error| Failure::Request(error.into()))?;
    if response.status().is_success() {
        return Ok(response);
    }
    Err(refusal(response, patience).await)
}

async fn refusal(response: Response<Body>, patience: Duration) -> Failure {
    let code = response.status();
    if code == StatusCode::GONE {
        return Failure::Expired;
    }
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(|seconds: u64| Duration::from_secs(seconds.min(LONGEST_RETRY_AFTER)));
    let body = read(response.into_body(), patience).await.unwrap_or_default();
    let status: Status = serde_json::from_slice(&body).unwrap_or_default();
    let message = if status.message.is_empty() {
        code.to_string()
    } else {
        status.message
    };
    Failure::Status {
        code: code.as_u16(),
        message,
        retry_after,
    }
}

/// Reads a body to its end.
///
/// # Errors
/// It breaks off, or nothing of it comes for so long.
pub(crate) async fn read(mut body: Body, patience: Duration) -> Result<BytesMut, Failure> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = timeout(patience, body.frame())
        .await
        .map_err(|_| Failure::Silence(patience))?
    {
        let frame = frame.map_err(|error| Failure::Request(error.into()))?;
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}
