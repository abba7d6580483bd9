//! What was special about the server when some scenarios were recorded.

/// Names of scenarios begin like this that were recorded one after another in the first half of
/// their file, when the leader kept no pessimistic lock in its memory: each of them that could tell
/// shows locks which region-wide commands see only in the store. All that follow, of the same kind,
/// show the opposite. The memory for such locks is limited and was presumably full of what earlier
/// scenarios had left behind, until the region split.
const FULL_MEMORY: [&str; 1] = ["pess_own"];

/// Whether the server had no memory left for pessimistic locks when a scenario was recorded.
pub fn had_full_memory(scenario: &str) -> bool {
    FULL_MEMORY
        .iter()
        .any(|prefix| scenario.starts_with(prefix))
}
