//! A bounded set of connections: who is served at a time, and who gives way.

use std::collections::VecDeque;
use std::future::Future;

use tokio::task::{AbortHandle, JoinSet};

/// The open connections of a server that outsiders can reach. At its bound the oldest gives way, so that nobody who
/// merely holds connections keeps others out. Dropping it ends them all.
#[derive(Debug)]
pub struct Connections {
    max: usize,
    tasks: JoinSet<()>,
    by_age: VecDeque<AbortHandle>,
}

impl Connections {
    /// No connections yet, and at most `max` (at least 1) at a time.
    pub fn new(max: usize) -> Self {
        Self {
            max: max.max(1),
            tasks: JoinSet::new(),
            by_age: VecDeque::new(),
        }
    }

    /// Serves one more.
    pub fn add(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.by_age.retain(|task| !task.is_finished());
        if self.by_age.len() >= self.max
            && let Some(oldest) = self.by_age.pop_front()
        {
            oldest.abort();
        }
        self.by_age.push_back(self.tasks.spawn(connection));
    }

    /// Waits until all have ended by themselves.
    pub async fn ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    /// Ends all, and returns when they have.
    pub async fn end(&mut self) {
        self.tasks.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn at_the_bound_the_oldest_gives_way() {
        let mut connections = Connections::new(2);
        let mut ended = Vec::new();
        for _ in 0..3 {
            let (sender, receiver) = oneshot::channel::<()>();
            connections.add(async move {
                let _held = sender;
                std::future::pending().await
            });
            ended.push(receiver);
        }
        let [oldest, second, newest] = <[_; 3]>::try_from(ended).unwrap();
        assert!(oldest.await.is_err(), "its future is dropped");
        let mut others = [second, newest];
        assert!(
            others
                .iter_mut()
                .all(|other| other.try_recv() == Err(oneshot::error::TryRecvError::Empty))
        );
        connections.end().await;
        for other in others {
            assert!(other.await.is_err());
        }
    }
}
