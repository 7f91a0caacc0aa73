//! One server after another at the same addresses, while a new version starts beside the old one.
//!
//! Who answers stands in a file that both share, by its number. A server that finds its addresses taken asks there who it is;
//! if it is the one of the file, the port is shared, as soon as the newcomer knows the cluster. Whatever else has the port
//! is left alone. The kernel then spreads the questions over both, until the older one leaves.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{AskWhoError, Identity, ask_who};

/// How long a predecessor may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the server's number is told to the next one.
#[derive(Clone, Debug)]
pub(super) struct Succession {
    path: Option<PathBuf>,
    domain: String,
}

impl Succession {
    /// Told in the file `path`, if there is one; servers are asked about `domain`.
    pub(super) fn new(path: Option<PathBuf>, domain: &str) -> Self {
        let domain = domain.to_owned();
        Self { path, domain }
    }

    /// The server that was started last.
    pub(super) fn last(&self) -> Option<Identity> {
        let text = std::fs::read_to_string(self.path.as_ref()?).ok()?;
        text.trim().parse().ok()
    }

    /// Says who is the last from now on.
    pub(super) fn claim(&self, identity: Identity) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // By rename, so that nobody reads half a number.
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, format!("{identity}\n"))?;
        std::fs::rename(fresh, path)
    }

    /// Whether another one has been started since.
    pub(super) fn is_superseded(&self, identity: Identity) -> bool {
        self.last().is_some_and(|last| last != identity)
    }

    /// Whether the server at these addresses is `predecessor`, at every one of them where anybody is.
    pub(super) async fn is_at(&self, predecessor: Identity, addresses: Vec<SocketAddr>) -> bool {
        let domain = self.domain.clone();
        let asking = tokio::task::spawn_blocking(move || {
            let mut is_there = false;
            for address in addresses {
                match ask_who(address, &domain, PATIENCE) {
                    Ok(Some(identity)) if identity == predecessor => is_there = true,
                    Err(AskWhoError::Io(error))
                        if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Ok(_) | Err(_) => return false,
                }
            }
            is_there
        });
        asking.await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_to_claim_is_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/dns-server");
        let succession = Succession::new(Some(path.clone()), "cluster.local");
        let (first, second) = (Identity([0; 8]), Identity(*b"\0second\xff"));
        assert_eq!(succession.last(), None);
        assert!(!succession.is_superseded(first), "nobody else is known");
        succession.claim(first).unwrap();
        assert!(!succession.is_superseded(first));
        succession.claim(second).unwrap();
        assert_eq!(succession.last(), Some(second));
        assert!(succession.is_superseded(first) && !succession.is_superseded(second));
        std::fs::write(&path, "somebody").unwrap();
        assert_eq!(succession.last(), None);
        assert!(Succession::new(None, "cluster.local").claim(first).is_ok());
    }

    #[tokio::test]
    async fn a_predecessor_answers_by_its_number_and_nobody_else_is_one() {
        let succession = Succession::new(None, "cluster.local");
        let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = gone.local_addr().unwrap();
        // It has the port and says nothing; then nobody has it.
        assert!(!succession.is_at(Identity([1; 8]), vec![address]).await);
        drop(gone);
        assert!(!succession.is_at(Identity([1; 8]), vec![address]).await);
    }
}
