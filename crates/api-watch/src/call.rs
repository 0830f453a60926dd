//! Requests to the API server as numbers: who wants to know is told of each when its answer begins.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body::Body;
use tower::Service;

/// A request, at the head of its answer.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Method.
    pub method: &'a str,
    /// Host and port.
    pub host: &'a str,
    /// Status; `None` where there was no answer.
    pub status: Option<u16>,
    /// From the request to the head of its answer.
    pub took: Duration,
    /// Bytes of the request's body.
    pub request_size: Option<u64>,
    /// Bytes of the answer's body; `None` where its head does not tell, as of a watch.
    pub response_size: Option<u64>,
}

/// Who is told.
#[derive(Clone)]
pub struct CallObserver(Arc<dyn Fn(&Call<'_>) + Send + Sync>);

impl CallObserver {
    /// Calls a function, which must not wait.
    pub fn new(tell: impl Fn(&Call<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }
}

impl Default for CallObserver {
    /// Nobody.
    fn default() -> Self {
        Self::new(|_| ())
    }
}

impl fmt::Debug for CallObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallObserver")
    }
}

/// A transport whose requests are told.
#[derive(Clone)]
pub(crate) struct Told<S> {
    pub(crate) inner: S,
    pub(crate) observer: CallObserver,
}

impl<S, Q, A> Service<Request<Q>> for Told<S>
where
    S: Service<Request<Q>, Response = Response<A>>,
    S::Future: Send + 'static,
    Q: Body,
    A: Body,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let start = Instant::now();
        let method = request.method().clone();
        let host = request.uri().authority().cloned();
        let request_size = request.body().size_hint().exact();
        let observer = self.observer.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let response = answer.as_ref().ok();
            (observer.0)(&Call {
                method: method.as_str(),
                host: host.as_ref().map_or("", |host| host.as_str()),
                status: response.map(|response| response.status().as_u16()),
                took: start.elapsed(),
                request_size,
                response_size: response.and_then(|response| response.body().size_hint().exact()),
            });
            answer
        })
    }
}
