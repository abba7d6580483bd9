//! The scoring pass: which replica suits a request best. Pure; the candidates are built by the
//! selector, its table is the test below. (client-go: `ReplicaSelectMixedStrategy`)

use std::time::Duration;

/// One replica, as far as it matters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Candidate {
    pub(super) is_leader: bool,
    pub(super) is_learner: bool,
    /// Its store failed since the request began.
    pub(super) is_stale: bool,
    /// Its store does not answer.
    pub(super) is_lost: bool,
    pub(super) is_slow: bool,
    /// Its store is one of those wanted and has the labels wanted.
    pub(super) matches: bool,
    pub(super) attempts: u32,
    pub(super) data_not_ready: bool,
    pub(super) server_busy: bool,
    pub(super) estimated_wait: Duration,
}

/// What the request prefers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wish {
    pub(super) try_leader: bool,
    pub(super) prefer_leader: bool,
    pub(super) leader_only: bool,
    pub(super) learner_only: bool,
    pub(super) has_labels: bool,
    /// Only replicas other than the leader that would take it up within this time.
    pub(super) idle_within: Option<Duration>,
}

impl Wish {
    pub(super) fn idle_within(limit: Duration) -> Self {
        Wish {
            idle_within: Some(limit),
            ..Wish::default()
        }
    }
}

impl Candidate {
    /// How well it suits, `None` if it does not at all. Higher wins, bit by bit.
    pub(super) fn score(&self, wish: &Wish) -> Option<u8> {
        if !self.is_candidate(wish) {
            return None;
        }
        let mut score = 0;
        if !self.is_slow {
            score |= NOT_SLOW;
        }
        if self.matches {
            score |= LABEL_MATCH;
        }
        score |= match self.is_leader {
            true => self.leader_score(wish),
            false if !wish.learner_only || self.is_learner => NORMAL_PEER,
            false => 0,
        };
        if self.attempts == 0 {
            score |= NOT_ATTEMPTED;
        }
        Some(score)
    }

    fn is_candidate(&self, wish: &Wish) -> bool {
        let attempts_max = if self.data_not_ready && !self.is_leader {
            2
        } else {
            1
        };
        let is_idle = |limit| !self.is_leader && self.estimated_wait <= limit && !self.server_busy;
        !self.is_stale
            && !self.is_lost
            && self.attempts < attempts_max
            && (!wish.leader_only || self.is_leader)
            && wish.idle_within.is_none_or(is_idle)
            && !(wish.prefer_leader && self.is_slow && !self.is_leader)
    }

    fn leader_score(&self, wish: &Wish) -> u8 {
        if wish.prefer_leader {
            if self.is_slow {
                NORMAL_PEER
            } else {
                PREFER_LEADER
            }
        } else if wish.try_leader {
            if wish.has_labels {
                PREFER_LEADER
            } else {
                NORMAL_PEER
            }
        } else {
            0
        }
    }
}

const NOT_SLOW: u8 = 16;
const LABEL_MATCH: u8 = 8;
const PREFER_LEADER: u8 = 4;
const NORMAL_PEER: u8 = 2;
const NOT_ATTEMPTED: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    /// Whose turn it could be at the first attempt.
    fn fresh(is_leader: bool) -> Candidate {
        Candidate {
            is_leader,
            matches: true,
            ..Candidate::default()
        }
    }

    #[test]
    fn replica_selector_calculate_score() {
        let slow = |candidate: Candidate| Candidate {
            is_slow: true,
            ..candidate
        };
        let tried = |candidate: Candidate| Candidate {
            attempts: 1,
            data_not_ready: true,
            ..candidate
        };
        let elsewhere = |candidate: Candidate| Candidate {
            matches: false,
            ..candidate
        };
        let learner = Candidate {
            is_learner: true,
            ..fresh(false)
        };
        let (leader, follower) = (fresh(true), fresh(false));
        let plain = Wish::default();
        let mixed = Wish {
            try_leader: true,
            ..plain
        };
        let labelled = Wish {
            has_labels: true,
            ..mixed
        };
        let prefer = Wish {
            prefer_leader: true,
            ..mixed
        };
        let learners = Wish {
            learner_only: true,
            ..plain
        };
        let all = NOT_SLOW | LABEL_MATCH | NOT_ATTEMPTED;
        for (candidate, wish, score) in [
            (leader, plain, all),
            (follower, plain, all | NORMAL_PEER),
            (leader, mixed, all | NORMAL_PEER),
            (follower, mixed, all | NORMAL_PEER),
            (leader, labelled, all | PREFER_LEADER),
            (
                elsewhere(leader),
                labelled,
                (all | PREFER_LEADER) - LABEL_MATCH,
            ),
            (leader, prefer, all | PREFER_LEADER),
            (slow(leader), prefer, (all | NORMAL_PEER) - NOT_SLOW),
            (slow(leader), plain, all - NOT_SLOW),
            (slow(follower), plain, (all | NORMAL_PEER) - NOT_SLOW),
            (tried(follower), plain, (all | NORMAL_PEER) - NOT_ATTEMPTED),
            (follower, learners, all),
            (learner, learners, all | NORMAL_PEER),
            (learner, plain, all | NORMAL_PEER),
        ] {
            assert_eq!(
                candidate.score(&wish),
                Some(score),
                "{candidate:?} {wish:?}"
            );
        }
    }

    #[test]
    fn who_is_no_candidate() {
        let (leader, follower) = (fresh(true), fresh(false));
        let idle = Wish::idle_within(Duration::from_millis(10));
        let leader_only = Wish {
            leader_only: true,
            ..Wish::default()
        };
        let prefer = Wish {
            prefer_leader: true,
            ..Wish::default()
        };
        let waits = |ms| Candidate {
            estimated_wait: Duration::from_millis(ms),
            ..follower
        };
        for (candidate, wish, expected) in [
            (
                Candidate {
                    is_stale: true,
                    ..follower
                },
                Wish::default(),
                false,
            ),
            (
                Candidate {
                    is_lost: true,
                    ..follower
                },
                Wish::default(),
                false,
            ),
            (
                Candidate {
                    attempts: 1,
                    ..follower
                },
                Wish::default(),
                false,
            ),
            (
                Candidate {
                    attempts: 1,
                    data_not_ready: true,
                    ..leader
                },
                Wish::default(),
                false,
            ),
            (
                Candidate {
                    attempts: 2,
                    data_not_ready: true,
                    ..follower
                },
                Wish::default(),
                false,
            ),
            (follower, leader_only, false),
            (leader, leader_only, true),
            (leader, idle, false),
            (waits(10), idle, true),
            (waits(11), idle, false),
            (
                Candidate {
                    server_busy: true,
                    ..follower
                },
                idle,
                false,
            ),
            (
                Candidate {
                    is_slow: true,
                    ..follower
                },
                prefer,
                false,
            ),
            (
                Candidate {
                    is_slow: true,
                    ..leader
                },
                prefer,
                true,
            ),
        ] {
            let got = candidate.score(&wish).is_some();
            assert_eq!(got, expected, "{candidate:?} {wish:?}");
        }
    }
}
