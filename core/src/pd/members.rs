//! Who PD's members are, and which of them leads: a decision machine, fed with their own answers.
//!
//! No I/O and no clock. Who asks whom, and when, stands in `pd`.
//! (PD Go client: `pdServiceDiscovery`)

use std::sync::Arc;

use tikv_proto::pdpb;

use crate::error::{Error, Result};

/// What is known of PD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Members {
    /// Zero until a member has told it.
    cluster_id: u64,
    /// Everyone worth asking: the leader first, then in order of name.
    urls: Vec<Arc<str>>,
    leader: Option<Arc<str>>,
    /// The scheme of the endpoints that the user gave.
    scheme: &'static str,
}

impl Members {
    /// Begins with the endpoints that the user gave, with or without a scheme.
    pub(crate) fn new(endpoints: impl IntoIterator<Item = String>, tls: bool) -> Result<Self> {
        let scheme = if tls { "https" } else { "http" };
        let mut urls: Vec<Arc<str>> = Vec::new();
        for endpoint in endpoints {
            let url = with_scheme(scheme, &endpoint);
            if endpoint.trim().is_empty() || endpoint.contains(char::is_whitespace) {
                return Err(Error::invalid_argument(format!(
                    "PD endpoint {endpoint:?} is no URL"
                )));
            }
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        if urls.is_empty() {
            return Err(Error::invalid_argument("no PD endpoint was given"));
        }
        Ok(Members {
            cluster_id: 0,
            urls,
            leader: None,
            scheme,
        })
    }

    /// The cluster's id, zero if it is not known yet.
    pub(crate) fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// The member to send to, if one is known to lead.
    pub(crate) fn leader(&self) -> Option<&Arc<str>> {
        self.leader.as_ref()
    }

    /// Everyone worth asking, the last known leader first.
    pub(crate) fn urls(&self) -> &[Arc<str>] {
        &self.urls
    }

    /// Takes in what the member at `from` says of all of them.
    ///
    /// # Errors
    ///
    /// The member belongs to another cluster ([`Error::ClusterIdMismatch`], which is final), or
    /// knows no leader (ask another).
    pub(crate) fn learn(
        &mut self,
        from: &Arc<str>,
        reply: &pdpb::GetMembersResponse,
    ) -> Result<Learned> {
        let header = reply.header.clone().unwrap_or_default();
        if let Some(error) = header.error.filter(|error| error.r#type != 0) {
            return Err(Error::Pd {
                call: "GetMembers",
                message: error.message.into(),
            });
        }
        if header.cluster_id == 0 {
            return Err(Error::protocol(format!(
                "PD at {from} answered without a cluster id"
            )));
        }
        if self.cluster_id != 0 && self.cluster_id != header.cluster_id {
            return Err(Error::ClusterIdMismatch {
                expected: self.cluster_id,
                got: header.cluster_id,
                from: from.clone(),
            });
        }
        let leader = reply.leader.as_ref().and_then(|leader| self.url_of(leader));
        let Some(leader) = leader else {
            return Err(Error::Pd {
                call: "GetMembers",
                message: "no leader".into(),
            });
        };
        let mut others: Vec<Arc<str>> = reply
            .members
            .iter()
            .filter_map(|member| self.url_of(member))
            .filter(|url| *url != leader)
            .collect();
        others.sort();
        others.dedup();
        self.cluster_id = header.cluster_id;
        let learned = if self.leader.as_ref() == Some(&leader) {
            Learned::SameLeader
        } else {
            Learned::NewLeader
        };
        self.urls = std::iter::once(leader.clone()).chain(others).collect();
        self.leader = Some(leader);
        Ok(learned)
    }

    /// A member's URL: the first that has the right scheme, else the first with the scheme put
    /// right.
    fn url_of(&self, member: &pdpb::Member) -> Option<Arc<str>> {
        let prefix = format!("{}://", self.scheme);
        let urls = &member.client_urls;
        let url = urls
            .iter()
            .find(|url| url.starts_with(&prefix))
            .or(urls.first())?;
        Some(with_scheme(self.scheme, url))
    }
}

/// What came of [`Members::learn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learned {
    SameLeader,
    NewLeader,
}

fn with_scheme(scheme: &str, endpoint: &str) -> Arc<str> {
    let bare = endpoint.trim().trim_end_matches('/');
    let bare = bare.split_once("://").map_or(bare, |(_, rest)| rest);
    format!("{scheme}://{bare}").into()
}

/// Whether the words of an error mean that the asked member does not lead (any more).
pub(crate) fn means_leader_changed(message: &str) -> bool {
    [
        "not leader",
        "no leader",
        "is not served",
        "not primary",
        "mismatch callee id",
    ]
    .iter()
    .any(|words| message.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, urls: &[&str]) -> pdpb::Member {
        pdpb::Member {
            name: name.into(),
            client_urls: urls.iter().map(|url| url.to_string()).collect(),
            ..Default::default()
        }
    }

    fn reply(cluster_id: u64, leader: Option<usize>) -> pdpb::GetMembersResponse {
        let members = vec![
            member("a", &["http://a:1"]),
            member("b", &["https://b:1", "http://b:2"]),
        ];
        pdpb::GetMembersResponse {
            header: Some(pdpb::ResponseHeader {
                cluster_id,
                error: None,
            }),
            leader: leader.map(|n| members[n].clone().into()),
            members,
            ..Default::default()
        }
    }

    fn urls(members: &Members) -> Vec<&str> {
        members.urls().iter().map(|url| &**url).collect()
    }

    #[test]
    fn endpoints_get_the_scheme_of_the_security_in_use() {
        let given = ["a:1", "http://b:2/", "https://c:3", "a:1"].map(String::from);
        let members = Members::new(given.clone(), false).unwrap();
        assert_eq!(urls(&members), ["http://a:1", "http://b:2", "http://c:3"]);
        let members = Members::new(given, true).unwrap();
        assert_eq!(
            urls(&members),
            ["https://a:1", "https://b:2", "https://c:3"]
        );
        for nonsense in [vec![], vec![String::new()], vec!["a b".to_string()]] {
            assert!(matches!(
                Members::new(nonsense, false),
                Err(Error::InvalidArgument { .. })
            ));
        }
    }

    #[test]
    fn the_leader_is_learned_and_followed() {
        let mut members = Members::new(["x:1".to_string()], false).unwrap();
        let x: Arc<str> = "http://x:1".into();
        assert_eq!(
            members.learn(&x, &reply(7, Some(0))),
            Ok(Learned::NewLeader)
        );
        assert_eq!(
            members.learn(&x, &reply(7, Some(0))),
            Ok(Learned::SameLeader)
        );
        assert_eq!(members.leader().map(|url| &**url), Some("http://a:1"));
        assert_eq!(
            members.learn(&x, &reply(7, Some(1))),
            Ok(Learned::NewLeader)
        );
        assert_eq!(urls(&members), ["http://b:2", "http://a:1"]);
        assert_eq!(members.cluster_id(), 7);
    }

    #[test]
    fn a_useless_answer_changes_nothing() {
        let mut members = Members::new(["x:1".to_string()], false).unwrap();
        let x: Arc<str> = "http://x:1".into();
        members.learn(&x, &reply(7, Some(0))).unwrap();
        let before = members.clone();
        assert!(matches!(
            members.learn(&x, &reply(8, Some(1))),
            Err(Error::ClusterIdMismatch {
                expected: 7,
                got: 8,
                ..
            })
        ));
        assert!(matches!(
            members.learn(&x, &reply(7, None)),
            Err(Error::Pd { .. })
        ));
        assert!(matches!(
            members.learn(&x, &reply(0, Some(1))),
            Err(Error::Protocol { .. })
        ));
        assert_eq!(members, before);
    }
}
