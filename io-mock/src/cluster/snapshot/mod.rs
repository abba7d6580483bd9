//! A whole cluster as bytes, to be kept in a file and gone on from: its data, regions, stores, and
//! everything PD knows.
//!
//! The bytes begin with a mark, the number of their format and a checksum; what follows is one
//! protobuf message, so a field may be added without a new number. What is not there when bytes are
//! read is as in a new cluster.
//!
//! | file | holds |
//! |---|---|
//! | `wire` | the message |
//! | `data` | locks, versions and raw values |
//! | `parts` | configuration, stores and regions |
//! | `trouble` | what has been made to go wrong |
//!
//! PD's part is with PD, in `pd::saved`. Deliberately absent: requests that wait, which belong to
//! connections and end with the process, writes that are held back, and errors on demand for commands
//! of one name.

mod data;
mod parts;
#[cfg(test)]
mod tests;
mod trouble;
pub(super) mod wire;

use prost::Message;

use self::wire::Snapshot;
use super::Cluster;
use super::checksum::crc64;
use super::pd::Pd;
use super::region::RegionMap;

/// What the bytes begin with.
const MARK: &[u8; 8] = b"TIKVMOCK";
/// The number of the format that is written here.
const VERSION: u32 = 1;
const VERSION_END: usize = MARK.len() + size_of::<u32>();
const HEADER_LEN: usize = VERSION_END + size_of::<u64>();

/// Why bytes are no cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SnapshotError {
    /// They do not begin as a saved cluster does.
    NotASnapshot,
    /// They were written by a version that is not known here.
    Version {
        /// The number of their format.
        found: u32,
        /// The greatest one that is known here.
        known: u32,
    },
    /// The checksum is not theirs: they were cut or changed.
    Damaged,
    /// They can't be read, or what they say can't be.
    Unreadable(String),
}

impl std::fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SnapshotError::NotASnapshot => f.write_str("this is no saved cluster"),
            SnapshotError::Version { found, known } => write!(
                f,
                "the cluster was saved in format {found}, and only those up to {known} are known"
            ),
            SnapshotError::Damaged => f.write_str("the saved cluster is damaged"),
            SnapshotError::Unreadable(why) => write!(f, "the saved cluster can't be read: {why}"),
        }
    }
}

impl std::error::Error for SnapshotError {}

impl SnapshotError {
    fn impossible(what: &str) -> Self {
        SnapshotError::Unreadable(format!("impossible {what}"))
    }
}

impl Cluster {
    /// The whole cluster as bytes, for [`load`](Self::load).
    pub fn save(&self) -> Vec<u8> {
        let engine = &self.engine;
        let snapshot = Snapshot {
            config: Some(parts::save_config(&self.config)),
            stores: self
                .stores
                .iter()
                .map(|(id, store)| wire::Store {
                    past: engine.past(*id).map(trouble::save_past),
                    ..parts::save_store(store)
                })
                .collect(),
            regions: self.regions.iter().map(parts::save_region).collect(),
            locks: data::save_locks(engine),
            histories: data::save_histories(engine),
            raw: data::save_raw(engine),
            pd: Some(self.pd.save()),
            truth: self.truth.iter().map(data::save_truth).collect(),
            collected: self.collected,
            injections: self
                .injections
                .iter()
                .filter_map(trouble::save_injection)
                .collect(),
        };
        let body = snapshot.encode_to_vec();
        let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
        bytes.extend_from_slice(MARK);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&crc64(&[&body]).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// The cluster that was [saved](Self::save).
    ///
    /// # Errors
    ///
    /// The bytes are no saved cluster, or one of another version, or damaged.
    pub fn load(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let body = checked(bytes)?;
        let snapshot =
            Snapshot::decode(body).map_err(|error| SnapshotError::Unreadable(error.to_string()))?;
        let config = parts::load_config(snapshot.config.unwrap_or_default())?;
        let mut cluster = Cluster::new(config, 0);
        let mut pasts = Vec::new();
        cluster.stores.clear();
        for mut saved in snapshot.stores {
            let past = saved.past.take();
            let store = parts::load_store(saved)?;
            pasts.extend(past.map(|past| (store.meta.id, past)));
            cluster.stores.insert(store.meta.id, store);
        }
        cluster.regions = RegionMap::default();
        for region in snapshot.regions {
            cluster.regions.insert(parts::load_region(region)?);
        }
        if cluster.stores.is_empty() || cluster.regions.is_empty() {
            return Err(SnapshotError::impossible(
                "cluster without stores or regions",
            ));
        }
        cluster.engine = data::load_engine(snapshot.locks, snapshot.histories, snapshot.raw)?;
        cluster.stand_still_again();
        for (store, saved) in pasts {
            if let Some(past) = cluster.engine.past_mut(store) {
                trouble::load_past(saved, past)?;
            }
        }
        let injections = snapshot.injections.into_iter();
        cluster.injections = injections.map(trouble::load_injection).collect();
        cluster.pd = Pd::load(&cluster.config, snapshot.pd.unwrap_or_default())
            .ok_or_else(|| SnapshotError::impossible("state of PD"))?;
        let truth = snapshot.truth.into_iter().map(data::load_truth);
        cluster.truth = truth.collect::<Result<_, _>>()?;
        cluster.collected = snapshot.collected;
        Ok(cluster)
    }
}

/// What stands behind the header, if all is well with it.
fn checked(bytes: &[u8]) -> Result<&[u8], SnapshotError> {
    let Some((header, body)) = bytes.split_at_checked(HEADER_LEN) else {
        return Err(match bytes.starts_with(MARK) {
            true => SnapshotError::Damaged,
            false => SnapshotError::NotASnapshot,
        });
    };
    if !header.starts_with(MARK) {
        return Err(SnapshotError::NotASnapshot);
    }
    // Both parts are as long as their types.
    let version = <[u8; 4]>::try_from(&header[MARK.len()..VERSION_END]).unwrap_or_default();
    let found = u32::from_le_bytes(version);
    if found != VERSION {
        let known = VERSION;
        return Err(SnapshotError::Version { found, known });
    }
    let sum = <[u8; 8]>::try_from(&header[VERSION_END..]).unwrap_or_default();
    match u64::from_le_bytes(sum) == crc64(&[body]) {
        true => Ok(body),
        false => Err(SnapshotError::Damaged),
    }
}
