//! Clients on this driver: their names, and how they are connected.

use std::marker::PhantomData;
use std::time::Duration;

use tikv_core::{Config, Endpoints, Error, Result};

use crate::config::{IoConfig, Security};
use crate::driver::TokioDriver;

/// A client of TiKV's transactions, on tokio. [`Connect`] connects it.
pub type TransactionClient = tikv_core::TransactionClient<TokioDriver>;
/// A transaction, on tokio.
pub type Transaction = tikv_core::Transaction<TokioDriver>;
/// A view of the data at one timestamp, on tokio.
pub type Snapshot = tikv_core::Snapshot<TokioDriver>;
/// The rows of a range, on tokio.
pub type Scan = tikv_core::Scan<TokioDriver>;
/// A client of raw key-value, on tokio. [`Connect`] connects it.
pub type RawClient = tikv_core::RawClient<TokioDriver>;

/// How clients are connected: to PD's addresses, which know the rest.
///
/// ```no_run
/// use tikv_io_tokio::{Connect, TransactionClient};
///
/// # async fn example() -> tikv_io_tokio::Result<()> {
/// let client = TransactionClient::connect(["127.0.0.1:2379"]).await?;
/// # Ok(())
/// # }
/// ```
pub trait Connect: Sized + Send {
    /// Connects to a cluster, with every option at its default.
    ///
    /// # Errors
    ///
    /// No endpoint is valid, or no member of PD answered in time.
    ///
    /// # Dropping the future
    ///
    /// Nothing was made.
    fn connect<E: Into<String>>(
        pd: impl IntoIterator<Item = E>,
    ) -> impl Future<Output = Result<Self>> + Send {
        Self::builder().pd(pd).connect()
    }

    /// Options first.
    ///
    /// ```no_run
    /// use tikv_io_tokio::{Connect, RawClient, Security};
    ///
    /// # async fn example(ca: Vec<u8>) -> tikv_io_tokio::Result<()> {
    /// let client = RawClient::builder()
    ///     .pd(["pd0:2379", "pd1:2379"])
    ///     .tls(Security::with_ca(ca))
    ///     .connect()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    fn builder() -> ClientBuilder<Self> {
        ClientBuilder {
            pd: Vec::new(),
            config: Config::default(),
            io: IoConfig::default(),
            driver: None,
            client: PhantomData,
        }
    }

    #[doc(hidden)] // How the builder makes one; the clients themselves have `with_driver`.
    fn from_driver(
        driver: TokioDriver,
        endpoints: Endpoints,
        config: Config,
    ) -> impl Future<Output = Result<Self>> + Send;
}

impl Connect for TransactionClient {
    fn from_driver(
        driver: TokioDriver,
        endpoints: Endpoints,
        config: Config,
    ) -> impl Future<Output = Result<Self>> + Send {
        Self::with_driver(driver, endpoints, config)
    }
}

impl Connect for RawClient {
    fn from_driver(
        driver: TokioDriver,
        endpoints: Endpoints,
        config: Config,
    ) -> impl Future<Output = Result<Self>> + Send {
        Self::with_driver(driver, endpoints, config)
    }
}

/// The options of a client that is about to connect. Made by [`Connect::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder connects nothing before `connect` is called and awaited"]
pub struct ClientBuilder<C> {
    pd: Vec<String>,
    config: Config,
    io: IoConfig,
    driver: Option<TokioDriver>,
    client: PhantomData<fn() -> C>,
}

impl<C: Connect> ClientBuilder<C> {
    /// Members of PD to begin with, as `host:port` or URLs; one that answers is enough. May be
    /// called again for more.
    pub fn pd<E: Into<String>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.pd.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// Encrypts every connection. Default plain.
    pub fn tls(mut self, security: Security) -> Self {
        self.io.security = Some(security);
        self
    }

    /// How many connections are kept to each store. Default 4.
    pub fn grpc_connection_count(mut self, connections: usize) -> Self {
        self.io.grpc_connection_count = connections;
        self
    }

    /// How long PD may take to give a first answer.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.config.connect_timeout = timeout;
        self
    }

    /// Every option of the protocol.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Every option of the connections.
    pub fn io_config(mut self, io: IoConfig) -> Self {
        self.io = io;
        self
    }

    /// Shares the connections of another client: those of
    /// [`driver`](tikv_core::TransactionClient::driver). The options of the connections are then
    /// those that it was made with; giving others is an error.
    pub fn driver(mut self, driver: TokioDriver) -> Self {
        self.driver = Some(driver);
        self
    }

    /// Connects.
    ///
    /// # Errors
    ///
    /// An option or an endpoint is not valid, or no member of PD answered in time.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, unless a [`driver`](Self::driver) was given.
    ///
    /// # Dropping the future
    ///
    /// Nothing was made.
    pub async fn connect(self) -> Result<C> {
        let driver = match self.driver {
            None => TokioDriver::new(self.io)?,
            Some(_) if self.io != IoConfig::default() => {
                return Err(Error::invalid_argument(
                    "a driver that exists has its options already: give either",
                ));
            }
            Some(driver) => driver,
        };
        let endpoints = Endpoints::new(self.pd, driver.is_encrypted());
        C::from_driver(driver, endpoints, self.config).await
    }
}
