//! Keyspaces: the one place where they are created.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tikv_proto::keyspacepb::{KeyspaceMeta, KeyspaceState};

use super::{Answer, Asked, bad, ok, wrong};
use crate::cluster::pd::keyspaces::{StateError, id_of};

/// The keyspace that collects garbage for itself is created so; it can't become one.
const GC_KIND: &str = "gc_management_type";
const GC_OWN: &str = "keyspace_level";

#[derive(Deserialize)]
struct Create {
    #[serde(default)]
    name: String,
    #[serde(default)]
    config: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Configure {
    /// Without a value, an entry goes.
    #[serde(default)]
    config: BTreeMap<String, Option<String>>,
    /// What must be so before; without a value, an entry must not be there.
    #[serde(default)]
    preconditions: BTreeMap<String, Option<String>>,
}

#[derive(Deserialize)]
struct Become {
    #[serde(default)]
    state: String,
}

pub(super) fn answer(mut asked: Asked<'_>) -> Option<Answer> {
    let path = asked.path.split_off(2);
    match (asked.method.clone(), &path[..]) {
        (Method::POST, []) => create(asked),
        (Method::GET, []) => list(asked),
        (Method::GET, ["id", id]) => match id.parse() {
            Ok(id) => told(asked.cluster.pd().keyspace(id)),
            Err(_) => failed("invalid keyspace id"),
        },
        (Method::GET, [name]) => told(asked.cluster.pd().keyspace_named(name)),
        (Method::PATCH, [name, "config"]) => configure(asked, name),
        (Method::PUT, [name, "state"]) => change(asked, name),
        _ => None,
    }
}

fn failed(why: impl Into<String>) -> Option<Answer> {
    wrong(StatusCode::INTERNAL_SERVER_ERROR, why)
}

fn told(meta: Option<&KeyspaceMeta>) -> Option<Answer> {
    match meta {
        Some(meta) => ok(keyspace(meta)),
        None => failed("[PD:keyspace:ErrKeyspaceNotFound]keyspace does not exist"),
    }
}

fn keyspace(meta: &KeyspaceMeta) -> Value {
    let mut told = Map::from_iter([
        ("id".to_owned(), json!(id_of(meta))),
        ("name".to_owned(), json!(meta.name)),
        ("state".to_owned(), json!(meta.state().as_str_name())),
    ]);
    // What has the value of nothing is left out.
    for (name, at) in [
        ("created_at", meta.created_at),
        ("state_changed_at", meta.state_changed_at),
    ] {
        if at != 0 {
            told.insert(name.to_owned(), json!(at));
        }
    }
    if !meta.config.is_empty() {
        told.insert("config".to_owned(), json!(meta.config));
    }
    Value::Object(told)
}

fn create(asked: Asked<'_>) -> Option<Answer> {
    let wish: Create = match serde_json::from_slice(&asked.body) {
        Ok(wish) => wish,
        Err(why) => return bad(why),
    };
    let config = wish.config.unwrap_or_default();
    let created = asked
        .cluster
        .create_keyspace(asked.now_ms, &wish.name, config);
    match created {
        Ok(id) => told(asked.cluster.pd().keyspace(id)),
        Err(why) => failed(why),
    }
}

fn list(asked: Asked<'_>) -> Option<Answer> {
    let number = |name| match asked.query.text(name) {
        "" => Ok(0),
        text => text.parse::<u32>(),
    };
    let (from, limit) = match (number("page_token"), number("limit")) {
        (Ok(from), Ok(limit)) => (from, limit),
        (Err(why), _) | (_, Err(why)) => return bad(why),
    };
    let limit = match limit {
        0 => usize::MAX,
        limit => limit as usize,
    };
    let mut all = asked.cluster.pd().keyspaces();
    let mut all = all.by_ref().filter(|(id, _)| *id >= from);
    let page: Vec<Value> = all
        .by_ref()
        .take(limit)
        .map(|(_, meta)| keyspace(meta))
        .collect();
    let next = all.next().map_or(String::new(), |(id, _)| id.to_string());
    ok(json!({ "keyspaces": page, "next_page_token": next }))
}

fn configure(asked: Asked<'_>, name: &str) -> Option<Answer> {
    let wish: Configure = match serde_json::from_slice(&asked.body) {
        Ok(wish) => wish,
        Err(why) => return bad(why),
    };
    if wish
        .config
        .get(GC_KIND)
        .is_some_and(|kind| kind.as_deref() == Some(GC_OWN))
    {
        return failed(
            "[PD:keyspace:ErrUnsupportedOperationInKeyspace]it's a unsupported operation \
             keyspace level GC",
        );
    }
    let pd = asked.cluster.pd_mut();
    let Some(meta) = pd.keyspace_named(name) else {
        return told(None);
    };
    let differs = wish
        .preconditions
        .iter()
        .find(|(name, value)| meta.config.get(*name) != value.as_ref());
    if let Some((name, _)) = differs {
        let why = format!(
            "[PD:keyspace:ErrKeyspaceConfigPreconditionFailed]keyspace config precondition failed, \
             {name}"
        );
        return wrong(StatusCode::CONFLICT, why);
    }
    let id = id_of(meta);
    match pd.configure_keyspace(id, wish.config) {
        Ok(meta) => ok(keyspace(&meta)),
        Err(why) => failed(why),
    }
}

fn change(asked: Asked<'_>, name: &str) -> Option<Answer> {
    let wish: Become = match serde_json::from_slice(&asked.body) {
        Ok(wish) => wish,
        Err(why) => return bad(why),
    };
    let Some(state) = KeyspaceState::from_str_name(&wish.state.to_uppercase()) else {
        return bad(format!("unknown target state: {}", wish.state));
    };
    let pd = asked.cluster.pd_mut();
    let Some(id) = pd.keyspace_named(name).map(id_of) else {
        return told(None);
    };
    match pd.set_keyspace_state(asked.now_ms, id, state) {
        Ok(meta) => ok(keyspace(&meta)),
        Err(StateError { message, .. }) => failed(message),
    }
}
