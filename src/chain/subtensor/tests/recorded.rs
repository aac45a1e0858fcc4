//! A node that answers what a real one answered: recorded sessions, and storage that was read from the real chain.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use subxt::ext::futures::stream::unfold;
use subxt::rpcs::client::{RawRpcFuture, RawRpcSubscription, RawValue, RpcClientT};
use subxt::rpcs::{Error, RpcClient, UserError};

use crate::golden;

/// The node.
pub(super) struct Recorded {
    /// The block that is finalized.
    pub(super) head: String,
    /// Answers by method and parameters.
    answers: HashMap<(String, String), Result<Value, Value>>,
    /// Values by block and key.
    storage: HashMap<String, BTreeMap<String, Option<String>>>,
    /// The runtime's metadata.
    metadata: Vec<u8>,
    /// The call that gives it, and what it gives before.
    metadata_call: (&'static str, &'static [u8]),
    /// The submissions and what part of the session each was.
    pub(super) submitted: Vec<(String, String)>,
    /// Blocks and what part of the session asked for them.
    pub(super) blocks: Vec<(String, String)>,
    /// What is answered instead.
    pub(super) instead: Mutex<Option<Instead>>,
    /// What is told, again and again, of an extrinsic that is handed in; `None`: the connection is cut.
    pub(super) news: Option<&'static str>,
    /// The requests that were made.
    pub(super) log: Mutex<Vec<String>>,
}

/// Answers a request otherwise, or leaves it.
pub(super) type Instead = Box<dyn Fn(&str, &Value) -> Option<Value> + Send>;

impl Recorded {
    /// The session of a runtime, `a` or `c`, as a node with metadata in one form only.
    pub(super) fn new(name: &str, metadata: &str) -> Self {
        let mut this = Self {
            head: String::new(),
            answers: HashMap::new(),
            storage: HashMap::new(),
            metadata: super::metadata(metadata),
            metadata_call: match metadata.ends_with("v15") {
                true => ("Metadata_metadata_at_version", &[1]),
                false => ("Metadata_metadata", &[]),
            },
            submitted: Vec::new(),
            blocks: Vec::new(),
            instead: Mutex::default(),
            news: None,
            log: Mutex::default(),
        };
        this.read_session(name);
        this
    }

    fn read_session(&mut self, name: &str) {
        let text = std::fs::read_to_string(golden::path(&format!("chain/rpc/{name}.jsonl"))).unwrap();
        let (mut mark, mut asked) = (String::new(), HashMap::new());
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            if let Some(name) = line["mark"].as_str() {
                mark = name.to_owned();
            }
            let message = &line["msg"];
            let id = (line["conn"].to_string(), message["id"].to_string());
            match line["dir"].as_str() {
                Some("request") => drop(asked.insert(id, message.clone())),
                Some("reply") if message.get("id").is_some() => {
                    let request = asked.remove(&id).unwrap();
                    self.note(&mark, request["method"].as_str().unwrap(), &request["params"], message);
                }
                _ => (),
            }
        }
    }

    fn note(&mut self, mark: &str, method: &str, params: &Value, reply: &Value) {
        let result = &reply["result"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match method {
            "chain_getFinalizedHead" if self.head.is_empty() => self.head = text(result).unwrap(),
            "state_getStorage" => {
                let (key, block) = (text(&params[0]).unwrap(), text(&params[1]).unwrap());
                self.storage.entry(block).or_default().insert(key, text(result));
            }
            "state_queryStorageAt" => {
                for change in result[0]["changes"].as_array().unwrap() {
                    let (key, value) = (text(&change[0]).unwrap(), text(&change[1]));
                    self.storage.entry(text(&params[1]).unwrap()).or_default().insert(key, value);
                }
            }
            "author_submitAndWatchExtrinsic" => self.submitted.push((mark.to_owned(), text(&params[0]).unwrap())),
            "chain_getBlock" => self.blocks.push((mark.to_owned(), text(&params[0]).unwrap())),
            _ => (),
        }
        let answer = reply.get("error").map_or_else(|| Ok(result.clone()), |error| Err(error.clone()));
        self.answers.insert((method.to_owned(), params.to_string()), answer);
    }

    /// Lays values over those at the finalized block.
    pub(super) fn overlay(&mut self, values: impl IntoIterator<Item = (String, Option<String>)>) {
        self.storage.entry(self.head.clone()).or_default().extend(values);
    }

    /// Lets the program call something by another name.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        use subxt::ext::codec::Encode;
        let (from, to) = (from.encode(), to.encode());
        let places: Vec<usize> =
            (0..self.metadata.len()).filter(|&at| self.metadata[at..].starts_with(&from)).collect();
        assert!(!places.is_empty());
        for at in places.into_iter().rev() {
            self.metadata.splice(at..at + from.len(), to.iter().copied());
        }
    }

    /// The client of it.
    pub(super) fn client(self: &Arc<Self>) -> RpcClient {
        RpcClient::new(Shared(Arc::clone(self)))
    }

    fn answer(&self, method: &str, params: &Value) -> Result<Value, Value> {
        self.log.lock().unwrap().push(method.to_owned());
        if let Some(value) = self.instead.lock().unwrap().as_ref().and_then(|instead| instead(method, params)) {
            return Ok(value);
        }
        let text = |index: usize| params[index].as_str().unwrap().to_owned();
        match method {
            "chain_getFinalizedHead" => Ok(json!(self.head)),
            "state_call" if text(0) == self.metadata_call.0 => {
                Ok(json!(with_length(&self.metadata, self.metadata_call.1)))
            }
            "state_call" if text(0).starts_with("Metadata_") => {
                Err(json!({"code": -32603, "message": "Function to start was not found."}))
            }
            "state_queryStorageAt" => {
                let stored = self.storage.get(&text(1));
                let value = |key: &Value| stored.and_then(|stored| stored.get(key.as_str().unwrap())).cloned();
                let keys = params[0].as_array().unwrap();
                let changes: Vec<Value> = keys.iter().map(|key| json!([key, value(key).flatten()])).collect();
                Ok(json!([{"block": text(1), "changes": changes}]))
            }
            "state_getKeysPaged" => {
                let after = params[2].as_str().unwrap_or_default();
                let keys = self.storage[&text(3)].iter().filter(|(_, value)| value.is_some()).map(|(key, _)| key);
                let keys = keys.filter(|key| key.starts_with(&text(0)) && key.as_str() > after);
                Ok(json!(keys.take(params[1].as_u64().unwrap() as usize).collect::<Vec<_>>()))
            }
            _ => match self.answers.get(&(method.to_owned(), params.to_string())) {
                Some(answer) => answer.clone(),
                None => Err(json!({"code": -32000, "message": format!("{method} {params} was not recorded")})),
            },
        }
    }
}

/// Bytes as a call gives them: after other bytes and their length.
fn with_length(bytes: &[u8], before: &[u8]) -> String {
    use subxt::ext::codec::{Compact, Encode};
    crate::hex::write([before, &Compact(bytes.len() as u64).encode(), bytes].concat())
}

struct Shared(Arc<Recorded>);

impl RpcClientT for Shared {
    fn request_raw<'a>(&'a self, method: &'a str, params: Option<Box<RawValue>>) -> RawRpcFuture<'a, Box<RawValue>> {
        let params = params.map_or(Value::Null, |params| serde_json::from_str(params.get()).unwrap());
        let answer = self.0.answer(method, &params);
        Box::pin(async move {
            match answer {
                Ok(value) => Ok(RawValue::from_string(value.to_string()).unwrap()),
                Err(error) => Err(Error::User(serde_json::from_value::<UserError>(error).unwrap())),
            }
        })
    }

    fn subscribe_raw<'a>(
        &'a self,
        method: &'a str,
        _: Option<Box<RawValue>>,
        _: &'a str,
    ) -> RawRpcFuture<'a, RawRpcSubscription> {
        self.0.log.lock().unwrap().push(method.to_owned());
        let news = self.0.news;
        Box::pin(async move {
            let Some(news) = news else { return Err(Error::Client("the connection was cut".into())) };
            let stream = unfold((), move |()| async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Some((Ok(RawValue::from_string(news.to_owned()).unwrap()), ()))
            });
            Ok(RawRpcSubscription { stream: Box::pin(stream), id: None })
        })
    }
}
