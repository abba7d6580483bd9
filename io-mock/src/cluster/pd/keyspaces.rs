//! Keyspaces: tenants of one cluster, each with a range of keys of its own, and their life.
//!
//! A keyspace can be found by its name once regions begin and end where it does, so that no region
//! holds keys of two. [`Cluster::create_keyspace`] splits them.
//!
//! Deliberately absent: namespaces.

use std::collections::BTreeMap;

use bytes::Bytes;
use tikv_proto::apipb::KeyspaceIdentity;
use tikv_proto::keyspacepb::{
    GetAllKeyspacesRequest, GetAllKeyspacesResponse, KeyspaceMeta, KeyspaceState,
    LoadKeyspaceByIdRequest, LoadKeyspaceRequest, LoadKeyspaceResponse, LookupKeyspaceRequest,
    LookupKeyspaceResponse, UpdateKeyspaceStateRequest, UpdateKeyspaceStateResponse,
    WatchKeyspacesRequest, WatchKeyspacesResponse, get_all_keyspaces_request, keyspace_meta,
    load_keyspace_by_id_request, update_keyspace_state_request,
};
use tikv_proto::pdpb::ErrorType;

use super::Pd;
use crate::cluster::failure::GrpcError;
use crate::cluster::{Cluster, key};

/// The greatest id: three bytes.
pub(super) const ID_MAX: u32 = 0xff_ffff;
/// The keyspace that is always there.
pub const DEFAULT_NAME: &str = "DEFAULT";
const DEFAULT_ID: u32 = 0;
/// Kept for the system.
const SYSTEM_ID: u32 = 0xff_fffe;
const NAME_LEN_MAX: usize = 64;

/// All keyspaces, and in which order they changed.
#[derive(Clone, Debug)]
pub(super) struct Keyspaces {
    pub(super) by_id: BTreeMap<u32, KeyspaceMeta>,
    /// Which keyspace changed last, then before that, ...; for watchers.
    pub(super) changes: Vec<u32>,
}

impl Default for Keyspaces {
    fn default() -> Self {
        let meta = KeyspaceMeta {
            keyspace: Some(keyspace_meta::Keyspace::Id(DEFAULT_ID)),
            name: DEFAULT_NAME.to_owned(),
            ..KeyspaceMeta::default()
        };
        Keyspaces {
            by_id: [(DEFAULT_ID, meta)].into(),
            changes: Vec::new(),
        }
    }
}

/// Why a keyspace does not come into another state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateError {
    /// How PD sorts it.
    pub kind: ErrorType,
    /// What is wrong.
    pub message: String,
}

/// Where the keys of a keyspace begin and end, raw and transactional, encoded as the bounds of
/// regions.
pub fn bounds(id: u32) -> [Bytes; 4] {
    let [_, a, b, c] = id.to_be_bytes();
    let start = |mode: u8| key::encode(&[mode, a, b, c]);
    let end = |mode: u8| {
        let next = id + 1;
        if next > ID_MAX {
            return key::encode(&[mode + 1]);
        }
        let [_, a, b, c] = next.to_be_bytes();
        key::encode(&[mode, a, b, c])
    };
    [start(b'r'), end(b'r'), start(b'x'), end(b'x')]
}

/// The id of a keyspace, however it is told.
pub(crate) fn id_of(meta: &KeyspaceMeta) -> u32 {
    match &meta.keyspace {
        Some(keyspace_meta::Keyspace::Id(id)) => *id,
        Some(keyspace_meta::Keyspace::KeyspaceIdentity(identity)) => identity.keyspace_id,
        None => DEFAULT_ID,
    }
}

pub(super) fn gc_is_own(meta: &KeyspaceMeta) -> bool {
    meta.config
        .get("gc_management_type")
        .is_some_and(|kind| kind == "keyspace_level")
}

pub(super) fn is_enabled(meta: &KeyspaceMeta) -> bool {
    meta.state() == KeyspaceState::Enabled
}

impl Cluster {
    /// Creates a keyspace, with regions that begin and end where it does, and returns its id.
    ///
    /// # Errors
    ///
    /// What is wrong with the name.
    pub fn create_keyspace(
        &mut self,
        now_ms: u64,
        name: &str,
        config: BTreeMap<String, String>,
    ) -> Result<u32, String> {
        let id = self.pd.add_keyspace(now_ms, name, config)?;
        self.split_keyspace(now_ms, id);
        Ok(id)
    }

    /// Splits regions so that they begin and end where a keyspace does.
    pub fn split_keyspace(&mut self, now_ms: u64, id: u32) {
        for bound in bounds(id) {
            if let Some(region) = self.regions.find(&bound) {
                let region = region.meta.id;
                self.split(now_ms, region, &[bound]);
            }
        }
    }
}

impl Pd {
    /// A keyspace by its id.
    pub fn keyspace(&self, id: u32) -> Option<&KeyspaceMeta> {
        self.keyspaces.by_id.get(&id)
    }

    /// All keyspaces, in the order of their ids.
    pub fn keyspaces(&self) -> impl Iterator<Item = (u32, &KeyspaceMeta)> {
        self.keyspaces.by_id.iter().map(|(id, meta)| (*id, meta))
    }

    /// A keyspace by its name, whether or not its regions stand.
    pub fn keyspace_named(&self, name: &str) -> Option<&KeyspaceMeta> {
        let mut all = self.keyspaces.by_id.values();
        all.find(|meta| meta.name == name)
    }

    /// Adds a keyspace without looking at regions.
    pub(super) fn add_keyspace(
        &mut self,
        now_ms: u64,
        name: &str,
        config: BTreeMap<String, String>,
    ) -> Result<u32, String> {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(legal) {
            return Err(format!(
                "illegal keyspace name {name}, should contain only alphanumerical and underline"
            ));
        }
        if self.keyspaces().any(|(_, meta)| meta.name == name) {
            return Err("keyspace already exists".to_owned());
        }
        let last = self.keyspaces.by_id.keys().next_back();
        let id = last.map_or(DEFAULT_ID, |last| last + 1);
        if id >= SYSTEM_ID {
            return Err("there is no id left for a keyspace".to_owned());
        }
        let now_s = seconds(now_ms);
        let meta = KeyspaceMeta {
            keyspace: Some(keyspace_meta::Keyspace::Id(id)),
            name: name.to_owned(),
            created_at: now_s,
            state_changed_at: now_s,
            config,
            ..KeyspaceMeta::default()
        };
        self.keyspaces.by_id.insert(id, meta);
        self.note_keyspace(id);
        Ok(id)
    }

    fn note_keyspace(&mut self, id: u32) {
        self.keyspaces.changes.push(id);
        self.watched += 1;
    }

    fn is_split_out(&self, id: u32) -> bool {
        bounds(id).iter().all(|bound| self.regions.has_start(bound))
    }

    /// A keyspace by its name, once its regions stand.
    pub fn load_keyspace(
        &self,
        member: usize,
        request: LoadKeyspaceRequest,
    ) -> Result<LoadKeyspaceResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let found = self.keyspaces().find(|(_, meta)| meta.name == request.name);
        Ok(match found {
            Some((id, meta)) if self.is_split_out(id) => LoadKeyspaceResponse {
                header: self.header(),
                keyspace: Some(meta.clone()),
            },
            Some(_) => self.no_keyspace("region split of the keyspace has not been done"),
            None => self.no_keyspace("keyspace does not exist"),
        })
    }

    /// A keyspace by its id.
    pub fn load_keyspace_by_id(
        &self,
        member: usize,
        request: LoadKeyspaceByIdRequest,
    ) -> Result<LoadKeyspaceResponse, GrpcError> {
        use load_keyspace_by_id_request::Keyspace;
        self.check(member, request.header.as_ref())?;
        let id = match request.keyspace {
            Some(Keyspace::Id(id)) => id,
            Some(Keyspace::KeyspaceIdentity(KeyspaceIdentity { keyspace_id, .. })) => keyspace_id,
            None => DEFAULT_ID,
        };
        Ok(match self.keyspace(id) {
            Some(meta) => LoadKeyspaceResponse {
                header: self.header(),
                keyspace: Some(meta.clone()),
            },
            None => self.no_keyspace("keyspace does not exist"),
        })
    }

    fn no_keyspace(&self, why: &str) -> LoadKeyspaceResponse {
        LoadKeyspaceResponse {
            header: self.error_header(ErrorType::EntryNotFound, why),
            keyspace: None,
        }
    }

    /// Every keyspace of a name; names are unique here.
    pub fn lookup_keyspace(
        &self,
        member: usize,
        request: LookupKeyspaceRequest,
    ) -> Result<LookupKeyspaceResponse, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let found = self
            .keyspaces()
            .filter(|(_, meta)| meta.name == request.name);
        Ok(LookupKeyspaceResponse {
            header: self.header(),
            keyspaces: found.map(|(_, meta)| meta.clone()).collect(),
        })
    }

    /// The keyspaces from an id on.
    pub fn get_all_keyspaces(
        &self,
        member: usize,
        request: GetAllKeyspacesRequest,
    ) -> Result<GetAllKeyspacesResponse, GrpcError> {
        use get_all_keyspaces_request::StartKeyspace;
        self.check(member, request.header.as_ref())?;
        let start = match request.start_keyspace {
            Some(StartKeyspace::StartId(id)) => id,
            Some(StartKeyspace::StartKeyspaceIdentity(identity)) => identity.keyspace_id,
            None => 0,
        };
        let limit = match request.limit {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let found = self.keyspaces().filter(|(id, _)| *id >= start).take(limit);
        Ok(GetAllKeyspacesResponse {
            header: self.header(),
            keyspaces: found.map(|(_, meta)| meta.clone()).collect(),
        })
    }

    /// Brings a keyspace into another state of its life.
    pub fn update_keyspace_state(
        &mut self,
        now_ms: u64,
        member: usize,
        request: UpdateKeyspaceStateRequest,
    ) -> Result<UpdateKeyspaceStateResponse, GrpcError> {
        use update_keyspace_state_request::Keyspace;
        self.check(member, request.header.as_ref())?;
        let id = match &request.keyspace {
            Some(Keyspace::Id(id)) => *id,
            Some(Keyspace::KeyspaceIdentity(identity)) => identity.keyspace_id,
            None => DEFAULT_ID,
        };
        Ok(match self.set_keyspace_state(now_ms, id, request.state()) {
            Ok(meta) => UpdateKeyspaceStateResponse {
                header: self.header(),
                keyspace: Some(meta),
            },
            Err(StateError { kind, message }) => UpdateKeyspaceStateResponse {
                header: self.error_header(kind, message),
                keyspace: None,
            },
        })
    }

    /// The same without a request.
    ///
    /// # Errors
    ///
    /// There is no such keyspace, it is protected, or it can't get there from where it is.
    pub fn set_keyspace_state(
        &mut self,
        now_ms: u64,
        id: u32,
        to: KeyspaceState,
    ) -> Result<KeyspaceMeta, StateError> {
        let refused = |kind, message: &str| StateError {
            kind,
            message: message.to_owned(),
        };
        if id == DEFAULT_ID || id == SYSTEM_ID {
            let why = "modifying protected keyspace is not allowed";
            return Err(refused(ErrorType::Unknown, why));
        }
        let Some(meta) = self.keyspaces.by_id.get(&id) else {
            return Err(refused(ErrorType::EntryNotFound, "keyspace does not exist"));
        };
        let from = meta.state();
        if !may_become(from, to) {
            let why = format!("cannot change keyspace state from {from:?} to {to:?}");
            return Err(refused(ErrorType::Unknown, &why));
        }
        let mut meta = meta.clone();
        if from != to {
            meta.set_state(to);
            meta.state_changed_at = seconds(now_ms);
            self.keyspaces.by_id.insert(id, meta.clone());
            self.note_keyspace(id);
        }
        Ok(meta)
    }

    /// Changes entries of a keyspace's configuration; one without a value goes.
    ///
    /// # Errors
    ///
    /// There is no such keyspace, or it is past being changed.
    pub fn configure_keyspace(
        &mut self,
        id: u32,
        changes: BTreeMap<String, Option<String>>,
    ) -> Result<KeyspaceMeta, String> {
        let Some(meta) = self.keyspaces.by_id.get_mut(&id) else {
            return Err("[PD:keyspace:ErrKeyspaceNotFound]keyspace does not exist".to_owned());
        };
        if !matches!(
            meta.state(),
            KeyspaceState::Enabled | KeyspaceState::Disabled
        ) {
            let state = meta.state().as_str_name();
            return Err(format!(
                "cannot change config for keyspace with state {state}"
            ));
        }
        for (name, value) in changes {
            match value {
                Some(value) => meta.config.insert(name, value),
                None => meta.config.remove(&name),
            };
        }
        let meta = meta.clone();
        self.note_keyspace(id);
        Ok(meta)
    }

    /// What a watcher that has seen `seen` changes is told next, and how many it has seen then;
    /// nothing, if nothing changed. The first answer is all keyspaces.
    pub fn watch_keyspaces(
        &self,
        member: usize,
        request: &WatchKeyspacesRequest,
        seen: Option<usize>,
    ) -> Result<Option<(WatchKeyspacesResponse, usize)>, GrpcError> {
        self.check(member, request.header.as_ref())?;
        let changes = &self.keyspaces.changes;
        let ids: Vec<u32> = match seen {
            None => self.keyspaces.by_id.keys().copied().collect(),
            Some(seen) => changes.get(seen..).unwrap_or_default().to_vec(),
        };
        if ids.is_empty() {
            return Ok(None);
        }
        let response = WatchKeyspacesResponse {
            header: self.header(),
            keyspaces: ids
                .iter()
                .filter_map(|id| self.keyspace(*id).cloned())
                .collect(),
        };
        Ok(Some((response, changes.len())))
    }
}

fn may_become(from: KeyspaceState, to: KeyspaceState) -> bool {
    use KeyspaceState::{Archived, Disabled, Enabled, Tombstone};
    matches!(
        (from, to),
        (Enabled, Disabled) | (Disabled, Enabled | Archived) | (Archived, Tombstone)
    ) || from == to
}

fn seconds(now_ms: u64) -> i64 {
    // Milliseconds since the Unix epoch, so a thousandth fits.
    (now_ms / 1000) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Config;
    use crate::cluster::pd::testing::{header, message};

    fn load(cluster: &Cluster, name: &str) -> LoadKeyspaceResponse {
        let request = LoadKeyspaceRequest {
            header: header(),
            name: name.to_owned(),
            ..Default::default()
        };
        cluster.pd().load_keyspace(0, request).unwrap()
    }

    #[test]
    fn a_keyspace_is_found_once_its_regions_stand() {
        let mut cluster = Cluster::new(Config::default(), 1);
        assert!(message(&load(&cluster, DEFAULT_NAME).header).contains("split"));
        cluster.split_keyspace(1, DEFAULT_ID);
        assert!(load(&cluster, DEFAULT_NAME).keyspace.is_some());
        let id = cluster.create_keyspace(1, "mine", BTreeMap::new()).unwrap();
        let found = load(&cluster, "mine").keyspace.unwrap();
        assert_eq!(found.keyspace, Some(keyspace_meta::Keyspace::Id(id)));
        let region = cluster
            .regions()
            .find(&key::encode(b"x\0\0\x01key"))
            .unwrap();
        let [_, _, start, end] = bounds(id);
        assert_eq!(
            (&region.meta.start_key, &region.meta.end_key),
            (&start, &end)
        );
        assert!(message(&load(&cluster, "other").header).contains("not exist"));
        for illegal in ["", "a b", "mine"] {
            assert!(
                cluster
                    .create_keyspace(1, illegal, BTreeMap::new())
                    .is_err()
            );
        }
    }

    #[test]
    fn the_last_keyspace_ends_with_its_letter() {
        let [_, raw_end, _, txn_end] = bounds(ID_MAX);
        assert_eq!((raw_end, txn_end), (key::encode(b"s"), key::encode(b"y")));
    }

    #[test]
    fn a_life_goes_one_way_and_watchers_see_it() {
        let mut cluster = Cluster::new(Config::default(), 1);
        let watch = |cluster: &Cluster, seen| {
            let request = WatchKeyspacesRequest { header: header() };
            let told = cluster.pd().watch_keyspaces(0, &request, seen).unwrap();
            told.map(|(told, seen)| {
                let states = told
                    .keyspaces
                    .iter()
                    .map(|meta| (meta.name.clone(), meta.state()));
                (states.collect::<Vec<_>>(), seen)
            })
        };
        let (all, seen) = watch(&cluster, None).unwrap();
        assert_eq!(all, [(DEFAULT_NAME.to_owned(), KeyspaceState::Enabled)]);
        assert_eq!(watch(&cluster, Some(seen)), None);
        let id = cluster.create_keyspace(1, "mine", BTreeMap::new()).unwrap();
        let mut update = |id, state: KeyspaceState| {
            let request = UpdateKeyspaceStateRequest {
                header: header(),
                keyspace: Some(update_keyspace_state_request::Keyspace::Id(id)),
                state: state.into(),
            };
            let answer = cluster
                .pd_mut()
                .update_keyspace_state(2_000, 0, request)
                .unwrap();
            answer.keyspace.is_some()
        };
        use KeyspaceState::{Archived, Disabled, Enabled, Tombstone};
        assert!(!update(DEFAULT_ID, Disabled), "protected");
        assert!(!update(id, Archived));
        assert!(update(id, Disabled));
        assert!(update(id, Disabled));
        assert!(update(id, Archived));
        assert!(!update(id, Enabled));
        assert!(update(id, Tombstone));
        let (changes, _) = watch(&cluster, Some(seen)).unwrap();
        assert_eq!(changes.len(), 4, "{changes:?}");
        assert!(changes.contains(&("mine".to_owned(), Tombstone)));
    }
}
