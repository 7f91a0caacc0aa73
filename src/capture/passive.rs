//! The modes without rules: listeners are bound to the frontends themselves, or there are none.
//!
//! Nothing in the kernel is read or changed here.

use async_trait::async_trait;

use crate::model::Family;

use super::plan::{Arrival, Rules};
use super::{Capture, CaptureError, Mode};

/// Captures nothing: what is bound to an address gets its traffic anyway.
pub(super) struct Passive {
    mode: Mode,
    family: Family,
}

impl Passive {
    pub(super) fn new(mode: Mode, family: Family) -> Self {
        Self { mode, family }
    }
}

#[async_trait]
impl Capture for Passive {
    fn family(&self) -> Family {
        self.family
    }

    fn mode(&self) -> Mode {
        self.mode
    }

    fn arrival(&self) -> Arrival {
        Arrival::Direct
    }

    async fn apply(&mut self, _rules: &Rules) -> Result<(), CaptureError> {
        Ok(())
    }

    async fn reassert(&mut self) -> Result<bool, CaptureError> {
        Ok(false)
    }

    async fn release(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }
}
