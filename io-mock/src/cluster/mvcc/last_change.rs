//! Where the newest data below a record stands, as far as its transaction knew: a note that saves
//! readers the walk over locks and rollbacks.
//!
//! It is kept because it can be seen. A transaction that commits below versions it has locked above
//! leaves a note that is wrong where it stands, and the server believes the note.

use super::error::MvccError;
use super::reader::Reader;
use super::write_record::{WriteKind, WriteRecord};
use crate::cluster::key::Key;

/// From this distance on a reader follows the note instead of walking.
pub const FOLLOWED_FROM: u64 = 8;

/// Where the newest data below a record stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastChange {
    /// Nobody has looked.
    #[default]
    Unknown,
    /// There is none.
    None,
    /// It stands at a version.
    At {
        /// The version.
        commit_ts: u64,
        /// How many records lie between, this one counted.
        distance: u64,
    },
}

impl LastChange {
    /// The note as two numbers: the version, and the distance.
    pub fn to_parts(self) -> (u64, u64) {
        match self {
            LastChange::Unknown => (0, 0),
            LastChange::None => (0, 1),
            LastChange::At {
                commit_ts,
                distance,
            } => (commit_ts, distance),
        }
    }

    /// The note that two numbers stand for.
    pub fn from_parts(commit_ts: u64, distance: u64) -> Self {
        match (commit_ts, distance) {
            (0, 0) => LastChange::Unknown,
            (0, _) => LastChange::None,
            (commit_ts, distance) => LastChange::At {
                commit_ts,
                distance,
            },
        }
    }

    /// The note for a record above this one, the newest of a key. The reader's own version
    /// `fence_ts` decides about fenced records.
    pub fn above(
        reader: &Reader<'_>,
        key: &Key,
        newest: Option<(u64, &WriteRecord)>,
        fence_ts: u64,
    ) -> Result<Self, MvccError> {
        let Some((commit_ts, write)) = newest else {
            return Ok(LastChange::None);
        };
        if matches!(write.kind, WriteKind::Put | WriteKind::Delete) {
            return Ok(LastChange::At {
                commit_ts,
                distance: 1,
            });
        }
        match write.last_change {
            LastChange::None => return Ok(LastChange::None),
            LastChange::At {
                commit_ts,
                distance,
            } => {
                return Ok(LastChange::At {
                    commit_ts,
                    distance: distance + 1,
                });
            }
            LastChange::Unknown => {}
        }
        let found = reader.get_write(key, commit_ts, fence_ts)?;
        Ok(
            found.map_or(LastChange::None, |(found_ts, _)| LastChange::At {
                commit_ts: found_ts,
                distance: reader.count_between(key, commit_ts, found_ts) + 1,
            }),
        )
    }
}
