//! Resource groups: named budgets of request units. [`token_buckets`](super::token_buckets) hands
//! the units out.

use std::collections::BTreeMap;

use tikv_proto::resource_manager::{
    DeleteResourceGroupRequest, DeleteResourceGroupResponse, GetResourceGroupRequest,
    GetResourceGroupResponse, GroupMode, GroupRequestUnitSettings, ListResourceGroupsRequest,
    ListResourceGroupsResponse, PutResourceGroupRequest, PutResourceGroupResponse, ResourceGroup,
    TokenBucket, TokenBucketsRequest, TokenBucketsResponse, TokenLimitSettings,
};

use super::Pd;
use super::token_buckets::Bucket;
use crate::cluster::failure::{GrpcCode, GrpcError};

/// The group of requests that name none.
const DEFAULT: &str = "default";
const NAME_LEN_MAX: usize = 32;
const PRIORITY_MAX: u32 = 16;
const PRIORITY_MEDIUM: u32 = 8;
const DONE: &str = "Success!";

/// All groups with their buckets.
#[derive(Clone, Debug)]
pub(super) struct ResourceGroups {
    pub(super) by_name: BTreeMap<String, (ResourceGroup, Bucket)>,
}

impl Default for ResourceGroups {
    fn default() -> Self {
        let settings = TokenLimitSettings {
            fill_rate: i32::MAX as u64,
            burst_limit: -1,
            ..TokenLimitSettings::default()
        };
        let group = ResourceGroup {
            name: DEFAULT.to_owned(),
            mode: GroupMode::RuMode.into(),
            r_u_settings: Some(GroupRequestUnitSettings {
                r_u: Some(TokenBucket {
                    settings: Some(settings),
                    tokens: 0.0,
                }),
            }),
            priority: PRIORITY_MEDIUM,
            ..ResourceGroup::default()
        };
        ResourceGroups {
            by_name: [(DEFAULT.to_owned(), (group, Bucket::new(settings, 0.0)))].into(),
        }
    }
}

/// The limits of a group's bucket, and how much it is given.
fn units(group: &ResourceGroup) -> (TokenLimitSettings, f64) {
    let units = group.r_u_settings.as_ref();
    let bucket = units.and_then(|settings| settings.r_u.as_ref());
    bucket.map_or_else(Default::default, |bucket| {
        (bucket.settings.unwrap_or_default(), bucket.tokens)
    })
}

fn failed(message: String) -> GrpcError {
    GrpcError::new(GrpcCode::Unknown, message)
}

impl Pd {
    fn check_resources(&self, member: usize) -> Result<(), GrpcError> {
        match self.leader == Some(member) {
            true => Ok(()),
            false => Err(GrpcError::new(GrpcCode::Unavailable, "not leader")),
        }
    }

    /// All resource groups.
    pub fn list_resource_groups(
        &self,
        member: usize,
        _request: ListResourceGroupsRequest,
    ) -> Result<ListResourceGroupsResponse, GrpcError> {
        self.check_resources(member)?;
        let groups = self.resources.by_name.values();
        Ok(ListResourceGroupsResponse {
            groups: groups.map(|(group, _)| group.clone()).collect(),
            ..ListResourceGroupsResponse::default()
        })
    }

    /// A resource group by its name.
    pub fn get_resource_group(
        &self,
        member: usize,
        request: GetResourceGroupRequest,
    ) -> Result<GetResourceGroupResponse, GrpcError> {
        self.check_resources(member)?;
        let name = &request.resource_group_name;
        let (group, _) = self
            .resources
            .by_name
            .get(name)
            .ok_or_else(|| failed(format!("the {name} resource group does not exist")))?;
        Ok(GetResourceGroupResponse {
            group: Some(group.clone()),
            ..GetResourceGroupResponse::default()
        })
    }

    /// Adds a resource group; one that is there already is replaced.
    pub fn add_resource_group(
        &mut self,
        member: usize,
        request: PutResourceGroupRequest,
    ) -> Result<PutResourceGroupResponse, GrpcError> {
        self.check_resources(member)?;
        let group = request.group.unwrap_or_default();
        if group.name.is_empty() || group.name.len() > NAME_LEN_MAX {
            return Err(failed(
                "the group name is invalid, its length should be in [1,32]".to_owned(),
            ));
        }
        if group.priority > PRIORITY_MAX {
            return Err(failed(
                "invalid resource group priority, the value should be in [0,16]".to_owned(),
            ));
        }
        if group.mode() == GroupMode::Unknown {
            return Err(failed("the resource group mode is unknown".to_owned()));
        }
        let (settings, given) = units(&group);
        let bucket = Bucket::new(settings, given);
        self.resources
            .by_name
            .insert(group.name.clone(), (group, bucket));
        Ok(done())
    }

    /// Changes a resource group. What its bucket holds stays.
    pub fn modify_resource_group(
        &mut self,
        member: usize,
        request: PutResourceGroupRequest,
    ) -> Result<PutResourceGroupResponse, GrpcError> {
        self.check_resources(member)?;
        let group = request.group.unwrap_or_default();
        let Some((known, bucket)) = self.resources.by_name.get_mut(&group.name) else {
            return Err(failed(format!(
                "the {} resource group does not exist",
                group.name
            )));
        };
        if group.priority > PRIORITY_MAX {
            return Err(failed(
                "invalid resource group priority, the value should be in [0,16]".to_owned(),
            ));
        }
        if group.r_u_settings.is_some() {
            let (settings, more) = units(&group);
            bucket.change(settings, more);
        }
        let mode = known.mode;
        *known = group;
        known.mode = mode;
        Ok(done())
    }

    /// Deletes a resource group.
    pub fn delete_resource_group(
        &mut self,
        member: usize,
        request: DeleteResourceGroupRequest,
    ) -> Result<DeleteResourceGroupResponse, GrpcError> {
        self.check_resources(member)?;
        let name = &request.resource_group_name;
        if name == DEFAULT {
            return Err(failed("cannot delete reserved group".to_owned()));
        }
        if self.resources.by_name.remove(name).is_none() {
            return Err(failed(format!("the {name} resource group does not exist")));
        }
        Ok(DeleteResourceGroupResponse {
            body: DONE.to_owned(),
            ..DeleteResourceGroupResponse::default()
        })
    }

    /// Hands request units out. Unknown groups, and background work, get no entry.
    pub fn acquire_token_buckets(
        &mut self,
        now_ms: u64,
        member: usize,
        request: TokenBucketsRequest,
    ) -> Result<TokenBucketsResponse, GrpcError> {
        self.check_resources(member)?;
        let period_ms = request.target_request_period_ms;
        let client = request.client_unique_id;
        let mut responses = Vec::new();
        for wish in request
            .requests
            .into_iter()
            .filter(|wish| !wish.is_background)
        {
            if let Some((_, bucket)) = self.resources.by_name.get_mut(&wish.resource_group_name) {
                responses.push(bucket.answer(now_ms, client, period_ms, wish));
            }
        }
        Ok(TokenBucketsResponse {
            error: None,
            responses,
        })
    }
}

fn done() -> PutResourceGroupResponse {
    PutResourceGroupResponse {
        body: DONE.to_owned(),
        ..PutResourceGroupResponse::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::pd::testing::pd;

    fn put(name: &str, priority: u32) -> PutResourceGroupRequest {
        PutResourceGroupRequest {
            group: Some(ResourceGroup {
                name: name.to_owned(),
                mode: GroupMode::RuMode.into(),
                priority,
                ..ResourceGroup::default()
            }),
        }
    }

    #[test]
    fn groups_come_and_go_but_the_default_stays() {
        let mut pd = pd();
        assert_eq!(
            pd.add_resource_group(0, put("batch", 1)).unwrap().body,
            DONE
        );
        assert_eq!(
            pd.modify_resource_group(0, put("batch", 16)).unwrap().body,
            DONE
        );
        let list = pd
            .list_resource_groups(0, Default::default())
            .unwrap()
            .groups;
        let told: Vec<_> = list.iter().map(|g| (&*g.name, g.priority)).collect();
        assert_eq!(told, [("batch", 16), ("default", 8)]);
        let delete = |pd: &mut Pd, name: &str| {
            let request = DeleteResourceGroupRequest {
                resource_group_name: name.to_owned(),
                ..Default::default()
            };
            pd.delete_resource_group(0, request)
        };
        assert_eq!(delete(&mut pd, "batch").unwrap().body, DONE);
        assert!(delete(&mut pd, "default").is_err());
        let request = GetResourceGroupRequest {
            resource_group_name: "batch".to_owned(),
            ..Default::default()
        };
        let missing = pd.get_resource_group(0, request).unwrap_err();
        assert_eq!(missing.message, "the batch resource group does not exist");
    }

    #[test]
    fn a_group_has_a_short_name_and_a_priority_in_bounds() {
        let mut pd = pd();
        for (name, priority) in [("", 1), (&*"n".repeat(33), 1), ("n", 17)] {
            assert!(
                pd.add_resource_group(0, put(name, priority)).is_err(),
                "{name}"
            );
        }
        assert!(pd.modify_resource_group(0, put("unknown", 1)).is_err());
        assert!(pd.add_resource_group(1, put("n", 1)).is_err(), "a follower");
    }
}
