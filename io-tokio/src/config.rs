//! The options of a driver: how it connects, and how long it waits for what.

use std::time::Duration;

use tikv_core::{Error, Result};

/// How a [`TokioDriver`](crate::TokioDriver) connects. What the protocol does is decided by
/// `tikv_core::Config`, not here.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoConfig {
    /// TLS. Default none: connections are plain.
    pub security: Option<Security>,
    /// How many connections are kept to each store. Default 4
    /// (client-go: `grpc-connection-count`).
    pub grpc_connection_count: usize,
    /// How long an attempt to connect may take. Default 5 s.
    pub connect_timeout: Duration,
    /// After how much silence a connection in use is probed. Default 10 s
    /// (client-go: `grpc-keepalive-time`).
    pub keepalive_interval: Duration,
    /// How long the answer to such a probe may take. Default 3 s
    /// (client-go: `grpc-keepalive-timeout`).
    pub keepalive_timeout: Duration,
    /// After how much time without a request connections are closed. They open again by
    /// themselves. Default 3 min.
    pub idle_timeout: Duration,
    /// The HTTP/2 flow-control window of a stream and of a connection, in bytes: how much a
    /// server may send before it is read. Default 128 MiB.
    pub window_bytes: u32,
}

impl Default for IoConfig {
    fn default() -> Self {
        IoConfig {
            security: None,
            grpc_connection_count: 4,
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(180),
            window_bytes: 128 << 20,
        }
    }
}

impl IoConfig {
    /// Checks that the options make sense together.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] that names the option.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("connect_timeout", self.connect_timeout),
            ("keepalive_interval", self.keepalive_interval),
            ("keepalive_timeout", self.keepalive_timeout),
            ("idle_timeout", self.idle_timeout),
        ];
        for (name, value) in positive {
            if value < Duration::from_millis(1) {
                return Err(Error::invalid_argument(format!(
                    "{name} must be at least 1 ms"
                )));
            }
        }
        if !(1..=64).contains(&self.grpc_connection_count) {
            return Err(Error::invalid_argument(
                "grpc_connection_count must be from 1 to 64",
            ));
        }
        // HTTP/2 knows no larger window, and a smaller one than its default helps nobody.
        if !(65_535..=0x7FFF_FFFF).contains(&self.window_bytes) {
            return Err(Error::invalid_argument(
                "window_bytes must be from 65535 to 2147483647",
            ));
        }
        if cfg!(not(feature = "tls")) && self.security.is_some() {
            return Err(Error::invalid_argument(
                "security needs the feature `tls`, without which this program was built",
            ));
        }
        Ok(())
    }
}

/// TLS: whom to trust, and who the client is. All of it in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Security {
    pub(crate) ca: Vec<u8>,
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(crate) domain: Option<String>,
}

impl Security {
    /// Trusts servers whose certificate was signed by one of these authorities.
    pub fn with_ca(ca: impl Into<Vec<u8>>) -> Self {
        Security {
            ca: ca.into(),
            identity: None,
            domain: None,
        }
    }

    /// Shows this certificate to servers that ask for one.
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Expects this name in the certificate of every server, in place of the host that was
    /// connected to.
    #[must_use]
    pub fn domain(mut self, name: impl Into<String>) -> Self {
        self.domain = Some(name.into());
        self
    }
}

impl std::fmt::Debug for Security {
    /// Says what there is, and shows no key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Security")
            .field("ca_bytes", &self.ca.len())
            .field("identity", &self.identity.is_some())
            .field("domain", &self.domain)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_nonsense_is_named() {
        assert_eq!(IoConfig::default().validate(), Ok(()));
        let none = IoConfig {
            grpc_connection_count: 0,
            ..IoConfig::default()
        };
        assert!(
            none.validate()
                .unwrap_err()
                .to_string()
                .contains("grpc_connection_count")
        );
        let narrow = IoConfig {
            window_bytes: 1,
            ..IoConfig::default()
        };
        assert!(
            narrow
                .validate()
                .unwrap_err()
                .to_string()
                .contains("window_bytes")
        );
    }

    #[test]
    fn no_key_is_shown() {
        let security = Security::with_ca("ca").identity("certificate", "secret");
        assert!(!format!("{security:?}").contains("secret"));
    }
}
