//! Opens one HTTP/2 connection: the address as PD knows it, the options, TLS.

use std::sync::Arc;

use tikv_core::driver::TransportError;
use tonic::transport::{Channel, Endpoint};

use crate::config::IoConfig;
use crate::status;

/// Makes connections, all of the same kind.
#[derive(Debug)]
pub(crate) struct Connector {
    config: IoConfig,
}

impl Connector {
    pub(crate) fn new(config: IoConfig) -> Self {
        Connector { config }
    }

    /// Connects to a store's address or a URL of PD. Ends after
    /// [`connect_timeout`](IoConfig::connect_timeout) at the latest.
    pub(crate) async fn connect(&self, address: &Arc<str>) -> Result<Channel, TransportError> {
        let timeout = self.config.connect_timeout;
        let failed = |message| TransportError::Connect {
            address: address.clone(),
            message,
        };
        let endpoint = self.endpoint(address).map_err(failed)?;
        match tokio::time::timeout(timeout, endpoint.connect()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(failed(status::chain(&error))),
            Err(_) => Err(failed(format!("no connection within {timeout:?}").into())),
        }
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, Arc<str>> {
        let config = &self.config;
        let host = address.split_once("://").map_or(address, |(_, host)| host);
        let scheme = if self.is_secure(address)? {
            "https"
        } else {
            "http"
        };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{host}"))
            .map_err(|error| format!("not an address: {}", status::chain(&error)))?
            .connect_timeout(config.connect_timeout)
            .http2_keep_alive_interval(config.keepalive_interval)
            .keep_alive_timeout(config.keepalive_timeout)
            .initial_stream_window_size(config.window_bytes)
            .initial_connection_window_size(config.window_bytes);
        self.secure(endpoint)
    }

    /// TLS is used when the driver has been given an authority to trust, and never otherwise: a
    /// URL that asks for it then is an error, not a plain connection.
    fn is_secure(&self, address: &str) -> Result<bool, Arc<str>> {
        let secure = self.config.security.is_some();
        if !secure && address.starts_with("https://") {
            return Err("the address asks for TLS, but no security is configured".into());
        }
        Ok(secure)
    }

    #[cfg(feature = "tls")]
    fn secure(&self, endpoint: Endpoint) -> Result<Endpoint, Arc<str>> {
        use tonic::transport::{Certificate, ClientTlsConfig, Identity};

        let Some(security) = &self.config.security else {
            return Ok(endpoint);
        };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&security.ca));
        if let Some((certificate, key)) = &security.identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        if let Some(domain) = &security.domain {
            tls = tls.domain_name(domain);
        }
        endpoint
            .tls_config(tls)
            .map_err(|error| status::chain(&error))
    }

    #[cfg(not(feature = "tls"))]
    fn secure(&self, endpoint: Endpoint) -> Result<Endpoint, Arc<str>> {
        Ok(endpoint)
    }
}
