//! The global configuration: named items under a path, that can be watched. Kept in PD's metadata
//! storage.

use tikv_proto::meta_storagepb::{Event, event};
use tikv_proto::pdpb::{
    Error, ErrorType, EventType, GlobalConfigItem, LoadGlobalConfigRequest,
    LoadGlobalConfigResponse, ResponseHeader, StoreGlobalConfigRequest, StoreGlobalConfigResponse,
    WatchGlobalConfigRequest, WatchGlobalConfigResponse,
};

use super::Pd;
use super::meta_storage::Range;
use crate::cluster::failure::{GrpcCode, GrpcError};

/// Where items are when a request does not say.
const DEFAULT_PATH: &str = "/global/config/";

impl Pd {
    /// Stores and deletes items.
    pub fn store_global_config(
        &mut self,
        request: StoreGlobalConfigRequest,
    ) -> Result<StoreGlobalConfigResponse, GrpcError> {
        let path = path(&request.config_path)?;
        for item in request.changes {
            let name = format!("{path}{}", item.name);
            match item.kind() {
                EventType::Put => {
                    let value = match item.payload.is_empty() {
                        true => item.value.into(),
                        false => item.payload,
                    };
                    self.meta.put(name.into(), value, 0);
                }
                EventType::Delete => {
                    let range = Range {
                        start: name.into(),
                        end: Default::default(),
                    };
                    self.meta.delete(&range);
                }
            }
        }
        self.watched += 1;
        Ok(StoreGlobalConfigResponse::default())
    }

    /// Loads items by name, or all of a path.
    pub fn load_global_config(
        &self,
        request: LoadGlobalConfigRequest,
    ) -> Result<LoadGlobalConfigResponse, GrpcError> {
        let path = path(&request.config_path)?;
        let items = if request.names.is_empty() {
            let all = Range::prefix(path.as_bytes());
            let found = self.meta.within(&all);
            found
                .map(|kv| GlobalConfigItem {
                    // As PD does, the whole name.
                    name: String::from_utf8_lossy(&kv.key).into_owned(),
                    payload: kv.value.clone(),
                    kind: EventType::Put.into(),
                    ..GlobalConfigItem::default()
                })
                .collect()
        } else {
            let names = request.names.into_iter();
            names.map(|name| self.global_item(&path, name)).collect()
        };
        Ok(LoadGlobalConfigResponse {
            items,
            revision: self.meta.revision(),
        })
    }

    fn global_item(&self, path: &str, name: String) -> GlobalConfigItem {
        match self.meta.get(format!("{path}{name}").as_bytes()) {
            Some(kv) => GlobalConfigItem {
                name,
                payload: kv.value.clone(),
                kind: EventType::Put.into(),
                ..GlobalConfigItem::default()
            },
            None => GlobalConfigItem {
                error: Some(Error {
                    r#type: ErrorType::GlobalConfigNotFound.into(),
                    message: format!("key {path}{name} not found"),
                }),
                name,
                ..GlobalConfigItem::default()
            },
        }
    }

    /// What a watcher is told of the changes from revision `from` on, and where it goes on then;
    /// nothing, if nothing has happened. From 0 on means from now on.
    pub fn watch_global_config(
        &self,
        request: &WatchGlobalConfigRequest,
        from: i64,
    ) -> Result<(Option<WatchGlobalConfigResponse>, i64), GrpcError> {
        let path = path(&request.config_path)?;
        let next = self.meta.revision() + 1;
        if from == 0 {
            return Ok((None, next));
        }
        if from <= self.meta.compacted() {
            let message = format!(
                "required watch revision: {from} is smaller than current compact/min revision {}",
                self.meta.compacted()
            );
            return Ok((
                Some(WatchGlobalConfigResponse {
                    header: self.error_header(ErrorType::DataCompacted, message),
                    revision: self.meta.compacted(),
                    ..WatchGlobalConfigResponse::default()
                }),
                next,
            ));
        }
        let range = Range::prefix(path.as_bytes());
        let changes: Vec<_> = self.meta.since(&range, from).map(change).collect();
        let told = (!changes.is_empty()).then(|| WatchGlobalConfigResponse {
            changes,
            revision: self.meta.revision(),
            header: Some(ResponseHeader {
                cluster_id: self.cluster_id,
                error: None,
            }),
        });
        Ok((told, next))
    }
}

fn change(event: &Event) -> GlobalConfigItem {
    let kv = event.kv.clone().unwrap_or_default();
    // Of what is deleted the last value is told.
    let (kind, payload) = match event.r#type() {
        event::EventType::Put => (EventType::Put, kv.value),
        event::EventType::Delete => {
            let before = event.prev_kv.clone().unwrap_or_default();
            (EventType::Delete, before.value)
        }
    };
    GlobalConfigItem {
        name: String::from_utf8_lossy(&kv.key).into_owned(),
        payload,
        kind: kind.into(),
        ..GlobalConfigItem::default()
    }
}

/// The path of a request, with a slash at its end.
fn path(path: &str) -> Result<String, GrpcError> {
    if path.is_empty() {
        return Ok(DEFAULT_PATH.to_owned());
    }
    if !path.starts_with('/') {
        let message = format!("invalid config path {path}");
        return Err(GrpcError::new(GrpcCode::InvalidArgument, message));
    }
    Ok(format!("{}/", path.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::pd::testing::pd;

    #[test]
    fn items_are_stored_loaded_and_watched() {
        let mut pd = pd();
        let item = |name: &str, value: &str, kind: EventType| GlobalConfigItem {
            name: name.to_owned(),
            payload: value.to_owned().into(),
            kind: kind.into(),
            ..Default::default()
        };
        let store = |pd: &mut Pd, change| {
            let request = StoreGlobalConfigRequest {
                changes: vec![change],
                ..Default::default()
            };
            pd.store_global_config(request).unwrap();
        };
        store(&mut pd, item("a", "1", EventType::Put));
        let request = LoadGlobalConfigRequest {
            names: vec!["a".to_owned(), "b".to_owned()],
            ..Default::default()
        };
        let loaded = pd.load_global_config(request).unwrap();
        assert_eq!(&loaded.items[0].payload[..], b"1");
        let missing = loaded.items[1].error.as_ref().unwrap();
        assert_eq!(missing.r#type(), ErrorType::GlobalConfigNotFound);
        let watch = WatchGlobalConfigRequest::default();
        let from = loaded.revision + 1;
        assert_eq!(pd.watch_global_config(&watch, from).unwrap(), (None, from));
        store(&mut pd, item("a", "", EventType::Delete));
        let (told, _) = pd.watch_global_config(&watch, from).unwrap();
        let changes = told.unwrap().changes;
        assert_eq!(changes[0].name, "/global/config/a");
        assert_eq!(changes[0].kind(), EventType::Delete);
        assert_eq!(&changes[0].payload[..], b"1");
        let (told, next) = pd.watch_global_config(&watch, 0).unwrap();
        assert!(told.is_none(), "from now on: {told:?}");
        pd.compact_meta(next);
        let (told, _) = pd.watch_global_config(&watch, 1).unwrap();
        let error = told.unwrap().header.unwrap().error.unwrap();
        assert_eq!(error.r#type(), ErrorType::DataCompacted);
    }

    #[test]
    fn a_path_begins_at_the_root() {
        let pd = pd();
        let request = LoadGlobalConfigRequest {
            config_path: "elsewhere".to_owned(),
            ..Default::default()
        };
        let refused = pd.load_global_config(request).unwrap_err();
        assert_eq!(refused.code, GrpcCode::InvalidArgument);
    }
}
