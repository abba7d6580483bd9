//! The verbs over HTTP: `POST /VERB` with the arguments as a JSON object, `GET /` for what there is.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use tonic::body::Body;

use super::verb::{Refused, Verb};
use crate::serve::{ServedCluster, Service, Shared};

/// A longer request is refused.
const REQUEST_LEN_MAX: usize = 16 << 20;

/// Does what requests say.
#[derive(Debug)]
pub(crate) struct ControlServer {
    cluster: Weak<Shared>,
}

impl ControlServer {
    pub(crate) fn new(cluster: Weak<Shared>) -> Self {
        ControlServer { cluster }
    }
}

impl Service for ControlServer {
    async fn call(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let name = head.uri.path().trim_matches('/').to_owned();
        let verb = match (head.method, name.as_str()) {
            (Method::GET, "") => Ok(Verb::Describe {}),
            (Method::POST, name) => match Limited::new(body, REQUEST_LEN_MAX).collect().await {
                Ok(body) => verb(name, &body.to_bytes()),
                Err(error) => Err(error.to_string()),
            },
            _ => {
                let error = "GET / tells what there is; POST /VERB does something to it";
                return answer(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": error }));
            }
        };
        let verb = match verb {
            Ok(verb) => verb,
            Err(error) => return answer(StatusCode::BAD_REQUEST, &json!({ "error": error })),
        };
        // A client that goes away must not leave a store half started.
        let Some(cluster) = ServedCluster::upgrade(&self.cluster) else {
            let error = json!({ "error": "the cluster is gone" });
            return answer(StatusCode::SERVICE_UNAVAILABLE, &error);
        };
        let doing = tokio::spawn(async move { cluster.control(verb).await });
        match doing.await {
            Ok(Ok(outcome)) => answer(StatusCode::OK, &json!(outcome)),
            Ok(Err(refused)) => answer(status(&refused), &json!({ "error": refused.to_string() })),
            Err(error) => {
                let error = json!({ "error": error.to_string() });
                answer(StatusCode::INTERNAL_SERVER_ERROR, &error)
            }
        }
    }
}

/// The verb of a name and its arguments; no arguments are an empty object.
fn verb(name: &str, arguments: &[u8]) -> Result<Verb, String> {
    let arguments = match arguments.trim_ascii() {
        [] => Value::Object(Map::new()),
        some => serde_json::from_slice(some).map_err(|error| error.to_string())?,
    };
    let verb = Value::Object(Map::from_iter([(name.to_owned(), arguments)]));
    serde_json::from_value(verb).map_err(|error| error.to_string())
}

fn status(refused: &Refused) -> StatusCode {
    match refused {
        Refused::NoStore(_) | Refused::NoRegion(_) | Refused::NoMember(_) => StatusCode::NOT_FOUND,
        Refused::NoKey(_) => StatusCode::BAD_REQUEST,
        Refused::Forbidden(_) => StatusCode::CONFLICT,
        Refused::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn answer(status: StatusCode, value: &Value) -> Response<Body> {
    let text = format!("{value:#}\n");
    let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_read_with_their_arguments() {
        let pause = Verb::Pause { store: 1 };
        assert_eq!(verb("pause", br#"{"store": 1}"#), Ok(pause));
        assert_eq!(verb("describe", b""), Ok(Verb::Describe {}));
        let split = Verb::Split {
            keys: vec!["g".into(), super::super::KeyText::of(b"\0")],
            raw: false,
        };
        let text = br#"{"keys": ["g", {"hex": "00"}]}"#;
        assert_eq!(verb("split", text), Ok(split));
        for (name, arguments) in [
            ("stop", "{}"),
            ("stop", r#"{"store": 1, "more": 2}"#),
            ("stop", r#"{"store": "one"}"#),
            ("stop", "{"),
            ("dance", ""),
        ] {
            assert!(
                verb(name, arguments.as_bytes()).is_err(),
                "{name} {arguments}"
            );
        }
    }
}
