//! One request's way to a region: pick a replica, send, judge what comes back, back off, again.
//!
//! The judging stands in `region::verdict`, the picking in `replica`; here their verdicts are
//! carried out. Whatever can't be mended by sending to the same region again goes back to the
//! caller, who locates anew. (client-go: `RegionRequestSender`)

use std::sync::Arc;
use std::time::Duration;

use tikv_proto::{errorpb, kvrpcpb};

use super::cluster::Cluster;
use super::probe;
use crate::action::{Endpoint, Rpc};
use crate::backoff::Backoffer;
use crate::command::{Call, Command, RegionResponse};
use crate::config::Config;
use crate::error::{Error, Result, TransportError};
use crate::key::Key;
use crate::operation::Io;
use crate::pd::PdRegion;
use crate::region::{Effect, Region, RegionError, Then, Verdict};
use crate::replica::{Options, Selector, Target};
use crate::why::BackoffKind;

/// How a request is sent.
#[derive(Clone, Debug)]
pub(crate) struct SendOptions {
    /// How long one attempt may take.
    pub(crate) timeout: Duration,
    /// How long the server may work on it, if that is not as long.
    pub(crate) execution_limit: Option<Duration>,
    /// How much it matters.
    pub(crate) priority: kvrpcpb::CommandPri,
    /// Whether what it reads need not be kept at hand.
    pub(crate) not_fill_cache: bool,
    /// Transactions whose locks do not matter to it.
    pub(crate) resolved_locks: Vec<u64>,
    /// Transactions whose locks hold what it is to read.
    pub(crate) committed_locks: Vec<u64>,
    /// Which replicas may answer.
    pub(crate) replica: Options,
    /// Whether an earlier request with the same effect may have been executed.
    pub(crate) is_retry: bool,
    /// Whether it must not be executed twice: after an attempt that may have been, there is no
    /// other.
    pub(crate) once: bool,
}

impl SendOptions {
    fn new(timeout: Duration) -> Self {
        SendOptions {
            timeout,
            execution_limit: None,
            priority: kvrpcpb::CommandPri::Normal,
            not_fill_cache: false,
            resolved_locks: Vec::new(),
            committed_locks: Vec::new(),
            replica: Options::default(),
            is_retry: false,
            once: false,
        }
    }

    /// A read.
    pub(crate) fn read(timeout: Duration) -> Self {
        let mut options = SendOptions::new(timeout);
        options.replica.is_read = true;
        options
    }

    /// A write, or a question that may write: TiKV must not begin with it after this client has
    /// given it up.
    pub(crate) fn write(config: &Config) -> Self {
        let mut options = SendOptions::new(config.request_timeout);
        options.execution_limit = Some(config.write_execution_limit);
        options
    }

    /// A write whose effect depends on what it finds, and so may not be repeated.
    pub(crate) fn write_once(config: &Config) -> Self {
        SendOptions {
            once: true,
            ..SendOptions::write(config)
        }
    }

    /// A write that ends a transaction.
    pub(crate) fn commit(config: &Config) -> Self {
        SendOptions::write(config)
    }
}

/// What came of a request.
#[derive(Debug)]
pub(crate) struct Sent<R> {
    /// The answer, or why there is none.
    pub(crate) outcome: Result<Outcome<R>>,
    /// Whether an attempt without an answer may have been executed. Whether that matters is for
    /// the caller to say: an answer to a later attempt often settles it.
    pub(crate) may_be_applied: bool,
    /// How often it was sent.
    pub(crate) sends: u32,
}

/// What a request ended in, if not in an error.
#[derive(Debug)]
pub(crate) enum Outcome<R> {
    /// The region's answer, free of region errors.
    Answer(R),
    /// The region must be located again: it moved, split, merged, or can't be reached.
    Relocate(Relocate),
}

/// Why a region must be located again.
#[derive(Debug)]
pub(crate) struct Relocate {
    backoff: Option<BackoffKind>,
    cause: Error,
}

impl Relocate {
    /// Why, for a caller who does not go on.
    pub(crate) fn into_cause(self) -> Error {
        self.cause
    }

    /// Waits, unless the server said what became of the region.
    pub(crate) async fn back_off(self, io: &Io, backoff: &mut Backoffer) -> Result<()> {
        match self.backoff {
            Some(kind) => Box::pin(backoff.wait(io, kind, self.cause)).await,
            None => Ok(()),
        }
    }
}

impl Cluster {
    /// Sends a request to whatever region holds `key`, until there is an answer.
    pub(crate) async fn send_to_key<C>(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        key: &Key,
        request: C,
        options: &SendOptions,
    ) -> Result<C::Response>
    where
        C: Call,
        C::Response: RegionResponse,
    {
        let command = Arc::new(request.into());
        loop {
            let region = self.locate(io, backoff, key).await?;
            let sent = self
                .send_command::<C>(io, backoff, &region, &command, options)
                .await;
            match sent.outcome? {
                Outcome::Answer(response) => return Ok(response),
                Outcome::Relocate(relocate) => relocate.back_off(io, backoff).await?,
            }
        }
    }

    /// Sends a request to a region.
    pub(crate) async fn send<C>(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        region: &Arc<Region>,
        request: C,
        options: &SendOptions,
    ) -> Sent<C::Response>
    where
        C: Call,
        C::Response: RegionResponse,
    {
        let command = Arc::new(request.into());
        self.send_command::<C>(io, backoff, region, &command, options)
            .await
    }

    async fn send_command<C>(
        self: &Arc<Self>,
        io: &Io,
        backoff: &mut Backoffer,
        region: &Arc<Region>,
        command: &Arc<Command>,
        options: &SendOptions,
    ) -> Sent<C::Response>
    where
        C: Call,
        C::Response: RegionResponse,
    {
        let mut attempts = Attempts {
            cluster: self,
            io,
            selector: Selector::new(region.clone(), options.replica.clone(), self.seed()),
            once: options.once,
            may_be_applied: false,
            sends: 0,
        };
        let outcome = attempts.run::<C>(backoff, command, options).await;
        let Attempts {
            may_be_applied,
            sends,
            ..
        } = attempts;
        Sent {
            outcome,
            may_be_applied,
            sends,
        }
    }
}

/// The attempts of one request.
struct Attempts<'a> {
    cluster: &'a Arc<Cluster>,
    io: &'a Io,
    selector: Selector,
    once: bool,
    may_be_applied: bool,
    sends: u32,
}

/// Whether to go on.
enum Next<R> {
    Again,
    Stop(Outcome<R>),
}

/// What is rare is boxed: the future of a request that goes well stays small, and is moved about
/// cheaply.
impl Attempts<'_> {
    async fn run<C>(
        &mut self,
        backoff: &mut Backoffer,
        command: &Arc<Command>,
        options: &SendOptions,
    ) -> Result<Outcome<C::Response>>
    where
        C: Call,
        C::Response: RegionResponse,
    {
        loop {
            let Some(target) = self.selector.next(self.io.now()) else {
                if let Some(pause) = self.selector.last_pause() {
                    Box::pin(backoff.wait(self.io, pause.kind, pause.cause)).await?;
                }
                return Ok(self.relocate(&RegionError::relocate()));
            };
            if let Some(pause) = &target.pause {
                Box::pin(backoff.wait(self.io, pause.kind, pause.cause.clone())).await?;
            }
            let sent_at = self.io.now();
            backoff.check(sent_at, None)?;
            let deadline = backoff.request_deadline(sent_at, options.timeout);
            let rpc = Rpc {
                endpoint: Endpoint::Store {
                    id: target.store.id(),
                    address: target.address.clone(),
                },
                context: Some(self.context(&target, options)),
                command: command.clone(),
                deadline,
            };
            self.sends += 1;
            let reply = self.io.send(rpc).await;
            self.selector.spent(self.io.now().since(sent_at));
            let next = match reply.map(C::response) {
                Ok(Some(mut response)) => match response.take_region_error() {
                    None => {
                        self.selector.on_success();
                        return Ok(Outcome::Answer(response));
                    }
                    Some(error) => Box::pin(self.on_region_error(backoff, &target, error)).await?,
                },
                Ok(None) => {
                    let error = TransportError::Decode {
                        address: target.address.clone(),
                        message: format!("no answer to {}", C::LABEL).into(),
                    };
                    Box::pin(self.on_transport_error(backoff, &target, error)).await?
                }
                Err(error) => Box::pin(self.on_transport_error(backoff, &target, error)).await?,
            };
            match next {
                Next::Again => {}
                Next::Stop(outcome) => return Ok(outcome),
            }
        }
    }

    /// The context of one attempt: what the request asked for, and where this one goes.
    fn context(&self, target: &Target, options: &SendOptions) -> Box<kvrpcpb::Context> {
        let limit = options.execution_limit.unwrap_or(options.timeout);
        Box::new(kvrpcpb::Context {
            region_id: target.region.id,
            region_epoch: Some(target.region.epoch()),
            peer: Some(target.peer),
            cluster_id: self.cluster.pd().cluster_id(),
            priority: options.priority.into(),
            not_fill_cache: options.not_fill_cache,
            resolved_locks: options.resolved_locks.clone(),
            committed_locks: options.committed_locks.clone(),
            replica_read: target.replica_read,
            stale_read: target.stale_read,
            busy_threshold_ms: u32::try_from(target.busy_threshold.as_millis()).unwrap_or(u32::MAX),
            is_retry_request: options.is_retry || self.sends > 0,
            max_execution_duration_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            ..kvrpcpb::Context::default()
        })
    }

    async fn on_region_error<R>(
        &mut self,
        backoff: &mut Backoffer,
        target: &Target,
        error: errorpb::Error,
    ) -> Result<Next<R>> {
        let error = RegionError::classify(error);
        #[cfg(feature = "mutations")]
        if crate::mutation::is(crate::mutation::Mutation::IgnoreEpochChange)
            && matches!(error, RegionError::EpochNotMatch { .. })
        {
            backoff
                .wait(
                    self.io,
                    BackoffKind::RegionMiss,
                    error.to_error(target.region.id),
                )
                .await?;
            return Ok(Next::Again);
        }
        let verdict = self.selector.on_region_error(&error, self.io.now());
        self.carry_out(target, &verdict, &error)?;
        // A leader that steps down says so of what it has proposed, too, and that may be committed.
        let is_stale = matches!(error, RegionError::StaleCommand);
        #[cfg(feature = "mutations")]
        let is_stale = is_stale && !crate::mutation::is(crate::mutation::Mutation::StaleIsRefused);
        if is_stale {
            self.may_be_applied = true;
            if self.once {
                return Err(error.to_error(target.region.id));
            }
        }
        match verdict.then {
            Then::Retry | Then::Postpone(_) => Ok(Next::Again),
            Then::Backoff(kind) => {
                backoff
                    .wait(self.io, kind, error.to_error(target.region.id))
                    .await?;
                Ok(Next::Again)
            }
            Then::Probe => Ok(Next::Again),
            Then::Undetermined => {
                self.may_be_applied = true;
                Ok(Next::Stop(self.relocate(&error)))
            }
            Then::Relocate => Ok(Next::Stop(self.relocate(&error))),
            Then::Fail => Err(error.to_error(target.region.id)),
            Then::Close => Err(Error::Closed),
        }
    }

    async fn on_transport_error<R>(
        &mut self,
        backoff: &mut Backoffer,
        target: &Target,
        error: TransportError,
    ) -> Result<Next<R>> {
        self.may_be_applied |= error.may_have_been_sent();
        if self.once && self.may_be_applied {
            return Err(error.into());
        }
        // Without time left there is nothing to be learned for.
        backoff.check(self.io.now(), Some(&error.clone().into()))?;
        let verdict = self.selector.on_transport_error(&error, self.io.now());
        match verdict.then {
            Then::Close => return Err(Error::Closed),
            Then::Probe => {
                let found = probe::probe(self.cluster, self.io, &target.store).await;
                let probed = self.selector.on_probed(found, self.io.now());
                if probed.effects.contains(&Effect::Watch) {
                    probe::watch(self.cluster, self.io, target.store.clone());
                }
                backoff
                    .wait(self.io, BackoffKind::TikvRpc, error.into())
                    .await?;
            }
            Then::Backoff(kind) => backoff.wait(self.io, kind, error.into()).await?,
            Then::Retry | Then::Postpone(_) | Then::Relocate | Then::Fail | Then::Undetermined => {}
        }
        Ok(Next::Again)
    }

    /// Does what the selector leaves to the sender.
    fn carry_out(&self, target: &Target, verdict: &Verdict, error: &RegionError) -> Result<()> {
        for effect in &verdict.effects {
            match effect {
                Effect::InsertRegions => self.insert_regions(target, error)?,
                Effect::NeedCheck => self.cluster.recheck_stores(self.io),
                Effect::Watch => probe::watch(self.cluster, self.io, target.store.clone()),
                // The selector has done these. A connection that led to the wrong store is not
                // closed: the store's address is looked up again, and a new one gets a new one.
                Effect::Invalidate(_)
                | Effect::SwitchLeader(_)
                | Effect::Follow(_)
                | Effect::ReplaceBuckets
                | Effect::Flag(_)
                | Effect::AskLeader
                | Effect::OnceMore
                | Effect::DropBusyThreshold
                | Effect::CountBusy
                | Effect::CountIdle
                | Effect::EstimatedWait(_)
                | Effect::MarkSlow
                | Effect::FailStore
                | Effect::CloseConnection => {}
            }
        }
        Ok(())
    }

    fn insert_regions(&self, target: &Target, error: &RegionError) -> Result<()> {
        let RegionError::EpochNotMatch { current } = error else {
            return Ok(());
        };
        let mut regions = Vec::with_capacity(current.len());
        for region in current {
            let found = PdRegion {
                region: region.clone(),
                ..PdRegion::default()
            };
            regions.push(self.cluster.decode(found)?);
        }
        // The regions are built of the peers on stores that are known; PD need not even be up.
        let stores = self.cluster.stores();
        let unknown = regions
            .iter()
            .flat_map(|region| region.unresolved_stores(stores))
            .collect();
        self.cluster.resolve_stores_later(self.io, unknown);
        self.cluster.regions().on_epoch_not_match(
            self.selector.region(),
            regions,
            target.store.id(),
            self.cluster.stores(),
            self.io.now(),
        );
        Ok(())
    }

    fn relocate<R>(&self, error: &RegionError) -> Outcome<R> {
        Outcome::Relocate(Relocate {
            backoff: error.relocation_backoff(),
            cause: error.to_error(self.selector.region().id()),
        })
    }
}
