//! What is special about some recordings: what the server's state was, and which answers the
//! simulated cluster does not give, on purpose, each with its reason.

/// Names of scenarios begin like this, and this is why their answers differ.
const EXCEPTIONS: [(&str, &str); 0] = [];

/// Names of scenarios begin like this that were recorded one after another in the first half of
/// their file, when the leader kept no pessimistic lock in its memory: each of them that could tell
/// shows locks which region-wide commands see only in the store. All that follow, of the same kind,
/// show the opposite. The memory for such locks is limited and was presumably full of what earlier
/// scenarios had left behind, until the region split.
const FULL_MEMORY: [&str; 1] = ["pess_own"];

/// Why a scenario's answers may differ; `None` if they may not.
pub fn reason(scenario: &str) -> Option<&'static str> {
    let known = EXCEPTIONS.iter();
    let mut known = known.filter(|(prefix, _)| scenario.starts_with(prefix));
    known.next().map(|(_, reason)| *reason)
}

/// Whether the server had no memory left for pessimistic locks when a scenario was recorded.
pub fn recorded_with_full_memory(scenario: &str) -> bool {
    FULL_MEMORY
        .iter()
        .any(|prefix| scenario.starts_with(prefix))
}
