//! Region errors on demand, for tests of what a client makes of them: also those that a store of
//! this version never sends, or that depend on a load which is not modelled.

use tikv_proto::errorpb;

use super::Cluster;
use super::region::{RegionId, StoreId};

/// A region error that the next fitting requests get instead of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Injection {
    /// Only at this store.
    pub store: Option<StoreId>,
    /// Only for this region.
    pub region: Option<RegionId>,
    /// Only requests of this name, as the catalogue of commands has it: `"Prewrite"`.
    pub command: Option<&'static str>,
    /// The answer.
    pub error: errorpb::Error,
    /// How many requests get it.
    pub times: u32,
}

impl Injection {
    /// The next request to any store gets this error.
    pub fn once(error: errorpb::Error) -> Self {
        Injection {
            error,
            times: 1,
            ..Injection::default()
        }
    }
}

impl Cluster {
    /// Has requests answered with a region error, before anything else is looked at. Of several
    /// that fit a request, the oldest counts.
    pub fn inject(&mut self, injection: Injection) {
        if injection.times > 0 {
            self.injections.push(injection);
        }
    }

    /// Takes back what has not been answered yet.
    pub fn stop_injecting(&mut self) {
        self.injections.clear();
    }

    /// The error for a request, if there is one; it counts as answered.
    pub(crate) fn take_injected(
        &mut self,
        store: StoreId,
        region: RegionId,
        command: &str,
    ) -> Option<errorpb::Error> {
        let fits = |injection: &Injection| {
            injection.store.is_none_or(|only| only == store)
                && injection.region.is_none_or(|only| only == region)
                && injection.command.is_none_or(|only| only == command)
        };
        let at = self.injections.iter().position(fits)?;
        let injection = self.injections.get_mut(at)?;
        injection.times -= 1;
        let error = injection.error.clone();
        if injection.times == 0 {
            self.injections.remove(at);
        }
        Some(error)
    }
}

#[cfg(test)]
mod tests;
