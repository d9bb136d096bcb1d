//! Graphs: nodes with dependencies, their instantiation into a list of steps, and its launch and update.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex};

use crate::abi::{api, get, get_all, lock, put, put_if, text, unsupported};
use crate::copy::Fill;
use crate::errors::*;
use crate::launch::Launch;
use crate::memory;
use crate::state::{driver, new_handle};
use crate::stream::{Work, stream};
use crate::types::*;

/// A graph.
pub struct Graph {
    pub handle: usize,
    nodes: Mutex<Nodes>,
}

#[derive(Default)]
struct Nodes {
    /// By handle, hence in order of creation.
    by_handle: BTreeMap<usize, Node>,
    /// In a clone: the original's node to the clone's.
    clone_of: BTreeMap<usize, usize>,
    /// User objects that it holds, with their counts.
    objects: Vec<(usize, u32)>,
    /// Memory that its allocation nodes stand for.
    memory: Vec<u64>,
}

/// A node: what it does, after which others.
#[derive(Clone)]
pub struct Node {
    pub work: Work,
    pub after: Vec<usize>,
}

/// A node of an executable graph. Child graphs are flattened; their steps bear the child's node handles.
#[derive(Clone)]
pub struct Step {
    pub node: usize,
    pub work: Work,
    pub after: Vec<usize>,
    pub enabled: bool,
}

/// An executable graph.
pub struct Exec {
    pub handle: usize,
    pub flags: u64,
    steps: Mutex<Vec<Step>>,
    /// Its graph's nodes, child graphs included: what they need lives as long as this.
    _graph: Arc<Graph>,
}

/// A reference-counted object of the program.
pub struct UserObject {
    pub handle: usize,
    function: HostFn,
    data: usize,
    count: Mutex<u32>,
}

impl Graph {
    /// An empty graph, known under its handle.
    pub fn create() -> Result<Arc<Graph>> {
        Ok(driver()?.graphs.insert(|handle| Graph { handle, nodes: Mutex::default() }))
    }

    /// Adds a node and answers its handle.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` for a dependency that is not in this graph.
    pub fn add(&self, node: Node) -> Result<usize> {
        let mut nodes = lock(&self.nodes);
        if node.after.iter().any(|n| !nodes.by_handle.contains_key(n)) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        if let Work::Alloc { address } = node.work {
            nodes.memory.push(address);
        }
        let handle = new_handle();
        nodes.by_handle.insert(handle, node);
        lock(&driver()?.nodes).insert(handle, self.handle);
        Ok(handle)
    }

    /// Checks that a node is in this graph.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE`.
    pub fn expect(&self, node: usize) -> Result<()> {
        lock(&self.nodes).by_handle.contains_key(&node).then_some(()).ok_or(CUDA_ERROR_INVALID_VALUE)
    }

    /// These nodes and all that they depend on.
    pub fn ancestors(&self, of: &[usize]) -> Vec<usize> {
        let nodes = lock(&self.nodes);
        let (mut found, mut todo) = (BTreeSet::new(), of.to_vec());
        while let Some(n) = todo.pop() {
            if found.insert(n)
                && let Some(node) = nodes.by_handle.get(&n)
            {
                todo.extend(&node.after);
            }
        }
        found.into_iter().collect()
    }

    /// Its nodes in an order that respects every dependency: of those that can run, the oldest first.
    ///
    /// # Errors
    /// `CUDA_ERROR_INVALID_VALUE` if dependencies form a ring.
    fn steps(&self) -> Result<Vec<Step>> {
        let nodes = lock(&self.nodes);
        let mut waiting: BTreeMap<usize, usize> =
            nodes.by_handle.iter().map(|(&h, n)| (h, n.after.len())).collect();
        let mut followers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (&handle, node) in &nodes.by_handle {
            for &n in &node.after {
                followers.entry(n).or_default().push(handle);
            }
        }
        let mut ready: BTreeSet<usize> = waiting.iter().filter(|(_, n)| **n == 0).map(|(h, _)| *h).collect();
        let mut steps = Vec::with_capacity(waiting.len());
        while let Some(handle) = ready.pop_first() {
            waiting.remove(&handle);
            let Node { work, after } = nodes.by_handle[&handle].clone();
            if let Work::Child(child) = &work {
                steps.extend(child.steps()?);
            }
            steps.push(Step { node: handle, work, after, enabled: true });
            for f in followers.get(&handle).into_iter().flatten() {
                if let Some(n) = waiting.get_mut(f) {
                    *n -= 1;
                    if *n == 0 {
                        ready.insert(*f);
                    }
                }
            }
        }
        if waiting.is_empty() { Ok(steps) } else { Err(CUDA_ERROR_INVALID_VALUE) }
    }

    fn copy(&self) -> Result<Arc<Graph>> {
        let clone = Graph::create()?;
        let (mut map, mut order) = (BTreeMap::new(), Vec::new());
        for (&handle, node) in &lock(&self.nodes).by_handle {
            let work = match &node.work {
                Work::Child(child) => Work::Child(child.copy()?),
                work => work.clone(),
            };
            let new = clone.add(Node { work, after: Vec::new() })?;
            map.insert(handle, new);
            order.push((new, node.after.clone()));
        }
        let mut nodes = lock(&clone.nodes);
        for (new, after) in order {
            if let Some(node) = nodes.by_handle.get_mut(&new) {
                node.after = after.iter().filter_map(|n| map.get(n).copied()).collect();
            }
        }
        nodes.clone_of = map;
        nodes.memory.clear(); // the original's
        drop(nodes);
        Ok(clone)
    }

    /// Forgets it and its nodes; executable graphs made from it live on.
    pub fn destroy(&self) -> Result<()> {
        let driver = driver()?;
        driver.graphs.remove(self.handle)?;
        let mut children = Vec::new();
        for (handle, node) in &lock(&self.nodes).by_handle {
            lock(&driver.nodes).remove(handle);
            if let Work::Child(child) = &node.work {
                children.push(child.clone());
            }
        }
        for child in children {
            // A launch that was captured has a child without a handle.
            let _ = child.destroy();
        }
        Ok(())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let nodes = std::mem::take(&mut *lock(&self.nodes));
        for (object, count) in nodes.objects {
            let _ = release_object(object, count);
        }
        for address in nodes.memory {
            let _ = memory::release_graph_memory(address);
        }
    }
}

fn graph(handle: usize) -> Result<Arc<Graph>> {
    driver()?.graphs.get(handle)
}

fn exec(handle: usize) -> Result<Arc<Exec>> {
    driver()?.execs.get(handle)
}

/// Looks at or changes a node.
fn with_node<T>(handle: usize, f: impl FnOnce(&mut Node) -> Result<T>) -> Result<T> {
    let driver = driver()?;
    let owner = lock(&driver.nodes).get(&handle).copied().ok_or(CUDA_ERROR_INVALID_HANDLE)?;
    let graph = graph(owner)?;
    let mut nodes = lock(&graph.nodes);
    nodes.by_handle.get_mut(&handle).ok_or(CUDA_ERROR_INVALID_HANDLE).and_then(f)
}

unsafe fn add(out: *mut usize, to: usize, after: *const usize, len: usize, work: Work) -> Result<()> {
    // SAFETY: the program passed `len` node handles.
    let after = unsafe { get_all(after, len)? };
    let mut seen = BTreeSet::new();
    if !after.iter().all(|n| seen.insert(*n)) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    let node = graph(to)?.add(Node { work, after })?;
    // SAFETY: an out pointer of the program.
    unsafe { put(out, node) }
}

/// Writes handles to an array of the program, or their number if it is null.
unsafe fn list(handles: &[usize], out: *mut usize, len: *mut usize) -> Result<()> {
    if out.is_null() {
        // SAFETY: an out pointer of the program.
        return unsafe { put(len, handles.len()) };
    }
    // SAFETY: `out` has room for `*len` handles. Those beyond the node count are set to null, as documented.
    unsafe {
        let room = get(len)?;
        for i in 0..room {
            put(out.add(i), handles.get(i).copied().unwrap_or(0))?;
        }
        put(len, handles.len().min(room))
    }
}

fn instantiate(from: usize, flags: u64) -> Result<Arc<Exec>> {
    let graph = graph(from)?;
    let steps = graph.steps()?;
    Ok(driver()?.execs.insert(|handle| Exec { handle, flags, steps: Mutex::new(steps), _graph: graph }))
}

fn same_kind(a: &Work, b: &Work) -> bool {
    std::mem::discriminant(a) == std::mem::discriminant(b)
}

/// Replaces what a node of an executable graph does.
fn set_step(exec_handle: usize, node: usize, work: Work) -> Result<()> {
    let exec = exec(exec_handle)?;
    let mut steps = lock(&exec.steps);
    let step = steps.iter_mut().find(|s| s.node == node).ok_or(CUDA_ERROR_INVALID_VALUE)?;
    if !same_kind(&step.work, &work) {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    step.work = work;
    Ok(())
}

fn set_node(node: usize, work: Work) -> Result<()> {
    with_node(node, |n| {
        if !same_kind(&n.work, &work) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        n.work = work;
        Ok(())
    })
}

unsafe fn kernel_work(params: *const KernelNode) -> Result<Work> {
    // SAFETY: the program passed this structure and what it points to.
    unsafe {
        let p = get(params)?;
        let function = if p.v1.function != 0 { p.v1.function } else { p.kernel };
        Ok(Work::Kernel(Arc::new(Launch::from_node(function, &p.v1)?)))
    }
}

unsafe fn kernel_work_v1(params: *const KernelNodeV1) -> Result<Work> {
    // SAFETY: the program passed this structure and what it points to.
    unsafe {
        let p = get(params)?;
        Ok(Work::Kernel(Arc::new(Launch::from_node(p.function, &p)?)))
    }
}

unsafe fn copy_work(params: *const Memcpy3d) -> Result<Work> {
    // SAFETY: the program passed this structure.
    let params = unsafe { get(params)? };
    let copy = memory::copy_3d(&params)?;
    copy.check()?;
    Ok(Work::Copy(copy))
}

unsafe fn fill_work(params: *const MemsetNode) -> Result<Work> {
    // SAFETY: the program passed this structure.
    let p = unsafe { get(params)? };
    let pattern = match p.element_size {
        1 | 2 | 4 => p.value.to_le_bytes()[..p.element_size as usize].to_vec(),
        _ => return Err(CUDA_ERROR_INVALID_VALUE),
    };
    let fill = Fill { dst: p.dst, pattern, width: p.width, height: p.height, pitch: p.pitch };
    fill.check()?;
    Ok(Work::Fill(fill))
}

unsafe fn host_work(params: *const HostNode) -> Result<Work> {
    // SAFETY: the program passed this structure.
    let p = unsafe { get(params)? };
    if p.function.is_none() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    Ok(Work::Host { function: p.function, data: p.data as usize })
}

fn child_work(handle: usize) -> Result<Work> {
    Ok(Work::Child(graph(handle)?.copy()?))
}

fn event_work(handle: usize, make: impl FnOnce(Arc<crate::stream::Event>) -> Work) -> Result<Work> {
    Ok(make(driver()?.events.get(handle)?))
}

/// The work that `CUgraphNodeParams` describes.
unsafe fn any_work(params: *const NodeParams) -> Result<Work> {
    // SAFETY: the program passed this structure; `kind` says which member of the union is meant.
    unsafe {
        let p = get(params)?;
        let body = p.body.as_ptr();
        match p.kind {
            0 => kernel_work(body.cast()),
            1 => copy_work(&raw const (*body.cast::<MemcpyNode>()).copy),
            2 => fill_work(body.cast()),
            3 => host_work(body.cast()),
            4 => child_work(p.body[0] as usize),
            5 => Ok(Work::Empty),
            6 => event_work(p.body[0] as usize, Work::Wait),
            7 => event_work(p.body[0] as usize, Work::Record),
            11 => Ok(Work::Free { address: p.body[0] }),
            kind => Err(unsupported(&format!("cuGraphAddNode(CUgraphNodeType {kind})"))),
        }
    }
}

fn node_type(work: &Work) -> u32 {
    match work {
        Work::Kernel(_) => 0,
        Work::Copy(_) => 1,
        Work::Fill(_) => 2,
        Work::Host { .. } | Work::Callback { .. } => 3,
        Work::Child(_) => 4,
        Work::Empty => 5,
        Work::Wait(_) => 6,
        Work::Record(_) => 7,
        Work::Alloc { .. } => 10,
        Work::Free { .. } => 11,
    }
}

/// Adds or removes edges.
unsafe fn edges(of: usize, from: *const usize, to: *const usize, len: usize, add: bool) -> Result<()> {
    // SAFETY: the program passed `len` node handles in each.
    let (from, to) = unsafe { (get_all(from, len)?, get_all(to, len)?) };
    let graph = graph(of)?;
    let mut nodes = lock(&graph.nodes);
    for (f, t) in from.into_iter().zip(to) {
        if f == t || !nodes.by_handle.contains_key(&f) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let after = &mut nodes.by_handle.get_mut(&t).ok_or(CUDA_ERROR_INVALID_VALUE)?.after;
        match (add, after.iter().position(|n| *n == f)) {
            (true, None) => after.push(f),
            (false, Some(i)) => drop(after.remove(i)),
            _ => return Err(CUDA_ERROR_INVALID_VALUE),
        }
    }
    Ok(())
}

unsafe fn get_edges(of: usize, from: *mut usize, to: *mut usize, len: *mut usize) -> Result<()> {
    let graph = graph(of)?;
    let (mut f, mut t) = (Vec::new(), Vec::new());
    for (&handle, node) in &lock(&graph.nodes).by_handle {
        for &n in &node.after {
            f.push(n);
            t.push(handle);
        }
    }
    if from.is_null() != to.is_null() {
        return Err(CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: arrays of the program with room for `*len` handles.
    unsafe {
        let room = if from.is_null() { 0 } else { get(len)? };
        list(&f, from, len)?;
        if !to.is_null() {
            put(len, room)?;
        }
        list(&t, to, len)
    }
}

fn dependents(handle: usize) -> Result<Vec<usize>> {
    let owner = lock(&driver()?.nodes).get(&handle).copied().ok_or(CUDA_ERROR_INVALID_HANDLE)?;
    let graph = graph(owner)?;
    let nodes = lock(&graph.nodes);
    Ok(nodes.by_handle.iter().filter(|(_, n)| n.after.contains(&handle)).map(|(h, _)| *h).collect())
}

fn launch(handle: usize, on: usize) -> Result<()> {
    let (exec, stream) = (exec(handle)?, stream(on)?);
    let steps = lock(&exec.steps).clone();
    if stream.is_capturing() {
        let graph = Graph { handle: new_handle(), nodes: Mutex::default() };
        for step in steps {
            let work = if step.enabled { step.work } else { Work::Empty };
            let node = Node { work, after: step.after };
            lock(&graph.nodes).by_handle.insert(step.node, node);
        }
        return stream.issue(Work::Child(Arc::new(graph)));
    }
    stream.issue_steps(&steps)
}

/// Takes over what the nodes of a graph of the same shape do.
fn update(handle: usize, from: usize) -> Result<Result<(), (u32, usize)>> {
    let (exec, graph) = (exec(handle)?, graph(from)?);
    let new = graph.steps()?;
    let mut old = lock(&exec.steps);
    if new.len() != old.len() {
        return Ok(Err((2, 0)));
    }
    let place: BTreeMap<usize, usize> = new.iter().enumerate().map(|(i, s)| (s.node, i)).collect();
    let old_place: BTreeMap<usize, usize> = old.iter().enumerate().map(|(i, s)| (s.node, i)).collect();
    for (o, n) in old.iter().zip(&new) {
        let places = |after: &[usize], place: &BTreeMap<usize, usize>| -> BTreeSet<Option<usize>> {
            after.iter().map(|a| place.get(a).copied()).collect()
        };
        if places(&o.after, &old_place) != places(&n.after, &place) {
            return Ok(Err((2, n.node)));
        }
        if !same_kind(&o.work, &n.work) {
            return Ok(Err((3, n.node)));
        }
    }
    for (o, n) in old.iter_mut().zip(new) {
        o.work = n.work;
    }
    Ok(Ok(()))
}

fn release_object(handle: usize, count: u32) -> Result<()> {
    let driver = driver()?;
    let object = driver.user_objects.get(handle)?;
    let gone = {
        let mut n = lock(&object.count);
        *n = n.checked_sub(count).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        *n == 0
    };
    if gone {
        driver.user_objects.remove(handle)?;
        if let Some(function) = object.function {
            // SAFETY: the program gave this function to be called with this value.
            unsafe { function(object.data as *mut c_void) };
        }
    }
    Ok(())
}

api! {
    fn cuGraphCreate(out: *mut usize, flags: u32) {
        if flags != 0 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        put(out, Graph::create()?.handle)
    }
    fn cuGraphDestroy(handle: usize) {
        graph(handle)?.destroy()
    }
    fn cuGraphClone(out: *mut usize, handle: usize) {
        put(out, graph(handle)?.copy()?.handle)
    }
    fn cuGraphNodeFindInClone(out: *mut usize, node: usize, clone: usize) {
        let clone = graph(clone)?;
        let found = lock(&clone.nodes).clone_of.get(&node).copied();
        put(out, found.ok_or(CUDA_ERROR_INVALID_VALUE)?)
    }

    fn cuGraphAddKernelNode(out: *mut usize, to: usize, after: *const usize, len: usize, p: *const KernelNodeV1) {
        add(out, to, after, len, kernel_work_v1(p)?)
    }
    fn cuGraphAddKernelNode_v2(out: *mut usize, to: usize, after: *const usize, len: usize, p: *const KernelNode) {
        add(out, to, after, len, kernel_work(p)?)
    }
    fn cuGraphAddMemcpyNode(out: *mut usize, to: usize, after: *const usize, len: usize, p: *const Memcpy3d, _ctx: usize) {
        add(out, to, after, len, copy_work(p)?)
    }
    fn cuGraphAddMemsetNode(out: *mut usize, to: usize, after: *const usize, len: usize, p: *const MemsetNode, _ctx: usize) {
        add(out, to, after, len, fill_work(p)?)
    }
    fn cuGraphAddHostNode(out: *mut usize, to: usize, after: *const usize, len: usize, p: *const HostNode) {
        add(out, to, after, len, host_work(p)?)
    }
    fn cuGraphAddChildGraphNode(out: *mut usize, to: usize, after: *const usize, len: usize, child: usize) {
        add(out, to, after, len, child_work(child)?)
    }
    fn cuGraphAddEmptyNode(out: *mut usize, to: usize, after: *const usize, len: usize) {
        add(out, to, after, len, Work::Empty)
    }
    fn cuGraphAddEventRecordNode(out: *mut usize, to: usize, after: *const usize, len: usize, event: usize) {
        add(out, to, after, len, event_work(event, Work::Record)?)
    }
    fn cuGraphAddEventWaitNode(out: *mut usize, to: usize, after: *const usize, len: usize, event: usize) {
        add(out, to, after, len, event_work(event, Work::Wait)?)
    }
    fn cuGraphAddMemFreeNode(out: *mut usize, to: usize, after: *const usize, len: usize, address: u64) {
        add(out, to, after, len, Work::Free { address })
    }
    fn cuGraphAddNode(out: *mut usize, to: usize, after: *const usize, len: usize, p: *const NodeParams) {
        add(out, to, after, len, any_work(p)?)
    }
    fn cuGraphAddNode_v2(out: *mut usize, to: usize, after: *const usize, _data: *const c_void, len: usize, p: *const NodeParams) {
        add(out, to, after, len, any_work(p)?)
    }

    fn cuGraphKernelNodeGetParams(node: usize, out: *mut KernelNodeV1) {
        let params = with_node(node, |n| match &n.work {
            Work::Kernel(launch) => Ok(launch.node_params()),
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        })?;
        put(out, params)
    }
    fn cuGraphKernelNodeGetParams_v2(node: usize, out: *mut KernelNode) {
        let v1 = with_node(node, |n| match &n.work {
            Work::Kernel(launch) => Ok(launch.node_params()),
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        })?;
        put(out, KernelNode { v1, kernel: 0, context: 0 })
    }
    fn cuGraphKernelNodeSetParams(node: usize, p: *const KernelNodeV1) {
        set_node(node, kernel_work_v1(p)?)
    }
    fn cuGraphKernelNodeSetParams_v2(node: usize, p: *const KernelNode) {
        set_node(node, kernel_work(p)?)
    }
    fn cuGraphMemcpyNodeSetParams(node: usize, p: *const Memcpy3d) {
        set_node(node, copy_work(p)?)
    }
    fn cuGraphMemsetNodeGetParams(node: usize, out: *mut MemsetNode) {
        let params = with_node(node, |n| match &n.work {
            Work::Fill(f) => {
                let mut value = [0; 4];
                value[..f.pattern.len()].copy_from_slice(&f.pattern);
                Ok(MemsetNode {
                    dst: f.dst,
                    pitch: f.pitch,
                    value: u32::from_le_bytes(value),
                    element_size: f.pattern.len() as u32,
                    width: f.width,
                    height: f.height,
                })
            }
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        })?;
        put(out, params)
    }
    fn cuGraphMemsetNodeSetParams(node: usize, p: *const MemsetNode) {
        set_node(node, fill_work(p)?)
    }
    fn cuGraphHostNodeGetParams(node: usize, out: *mut HostNode) {
        let params = with_node(node, |n| match &n.work {
            Work::Host { function, data } => Ok(HostNode { function: *function, data: *data as *mut c_void }),
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        })?;
        put(out, params)
    }
    fn cuGraphHostNodeSetParams(node: usize, p: *const HostNode) {
        set_node(node, host_work(p)?)
    }
    fn cuGraphChildGraphNodeGetGraph(node: usize, out: *mut usize) {
        let handle = with_node(node, |n| match &n.work {
            Work::Child(child) => Ok(child.handle),
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        })?;
        put(out, handle)
    }
    fn cuGraphEventRecordNodeGetEvent(node: usize, out: *mut usize) {
        let handle = with_node(node, |n| match &n.work {
            Work::Record(event) => Ok(event.handle),
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        })?;
        put(out, handle)
    }
    fn cuGraphEventRecordNodeSetEvent(node: usize, event: usize) {
        set_node(node, event_work(event, Work::Record)?)
    }
    fn cuGraphEventWaitNodeGetEvent(node: usize, out: *mut usize) {
        let handle = with_node(node, |n| match &n.work {
            Work::Wait(event) => Ok(event.handle),
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        })?;
        put(out, handle)
    }
    fn cuGraphEventWaitNodeSetEvent(node: usize, event: usize) {
        set_node(node, event_work(event, Work::Wait)?)
    }
    fn cuGraphNodeSetParams(node: usize, p: *const NodeParams) {
        set_node(node, any_work(p)?)
    }
    /// Kernel node attributes other than the cluster size and cooperation, which a launch carries, are hints.
    fn cuGraphKernelNodeSetAttribute(node: usize, id: u32, value: *const [u64; 8]) {
        let value = get(value)?;
        with_node(node, |n| match &n.work {
            Work::Kernel(launch) => {
                let attribute = LaunchAttribute { id, pad: [0; 4], value };
                n.work = Work::Kernel(Arc::new(launch.with_attribute(&attribute)?));
                Ok(())
            }
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        })
    }
    fn cuGraphKernelNodeGetAttribute(node: usize, id: u32, out: *mut [u64; 8]) {
        let value = with_node(node, |n| match &n.work {
            Work::Kernel(launch) => Ok(launch.attribute(id)),
            _ => Err(CUDA_ERROR_INVALID_VALUE),
        })?;
        put(out, value)
    }

    fn cuGraphNodeGetType(node: usize, out: *mut u32) {
        put(out, with_node(node, |n| Ok(node_type(&n.work)))?)
    }
    fn cuGraphGetNodes(handle: usize, out: *mut usize, len: *mut usize) {
        let graph = graph(handle)?;
        let nodes: Vec<usize> = lock(&graph.nodes).by_handle.keys().copied().collect();
        list(&nodes, out, len)
    }
    fn cuGraphGetRootNodes(handle: usize, out: *mut usize, len: *mut usize) {
        let graph = graph(handle)?;
        let nodes = lock(&graph.nodes);
        let roots: Vec<usize> = nodes.by_handle.iter().filter(|(_, n)| n.after.is_empty()).map(|(h, _)| *h).collect();
        list(&roots, out, len)
    }
    fn cuGraphGetEdges(handle: usize, from: *mut usize, to: *mut usize, len: *mut usize) {
        get_edges(handle, from, to, len)
    }
    fn cuGraphGetEdges_v2(handle: usize, from: *mut usize, to: *mut usize, data: *mut u64, len: *mut usize) {
        get_edges(handle, from, to, len)?;
        clear_edge_data(data, len)
    }
    fn cuGraphNodeGetDependencies(node: usize, out: *mut usize, len: *mut usize) {
        list(&with_node(node, |n| Ok(n.after.clone()))?, out, len)
    }
    fn cuGraphNodeGetDependencies_v2(node: usize, out: *mut usize, data: *mut u64, len: *mut usize) {
        list(&with_node(node, |n| Ok(n.after.clone()))?, out, len)?;
        clear_edge_data(data, len)
    }
    fn cuGraphNodeGetDependentNodes(node: usize, out: *mut usize, len: *mut usize) {
        list(&dependents(node)?, out, len)
    }
    fn cuGraphNodeGetDependentNodes_v2(node: usize, out: *mut usize, data: *mut u64, len: *mut usize) {
        list(&dependents(node)?, out, len)?;
        clear_edge_data(data, len)
    }
    fn cuGraphAddDependencies(handle: usize, from: *const usize, to: *const usize, len: usize) {
        edges(handle, from, to, len, true)
    }
    fn cuGraphAddDependencies_v2(handle: usize, from: *const usize, to: *const usize, _data: *const c_void, len: usize) {
        edges(handle, from, to, len, true)
    }
    fn cuGraphRemoveDependencies(handle: usize, from: *const usize, to: *const usize, len: usize) {
        edges(handle, from, to, len, false)
    }
    fn cuGraphRemoveDependencies_v2(handle: usize, from: *const usize, to: *const usize, _data: *const c_void, len: usize) {
        edges(handle, from, to, len, false)
    }
    fn cuGraphDestroyNode(node: usize) {
        let owner = lock(&driver()?.nodes).remove(&node).ok_or(CUDA_ERROR_INVALID_HANDLE)?;
        let graph = graph(owner)?;
        let mut nodes = lock(&graph.nodes);
        nodes.by_handle.remove(&node);
        for other in nodes.by_handle.values_mut() {
            other.after.retain(|n| *n != node);
        }
        Ok(())
    }
    fn cuGraphDebugDotPrint(handle: usize, path: *const c_char, _flags: u32) {
        let graph = graph(handle)?;
        let path = text(path)?;
        let mut dot = String::from("digraph cuda {\n");
        for (handle, node) in &lock(&graph.nodes).by_handle {
            let label = match &node.work {
                Work::Kernel(launch) => launch.function.info.name.clone(),
                work => ["kernel", "memcpy", "memset", "host", "graph", "empty", "wait", "record", "", "", "alloc", "free"]
                    [node_type(work) as usize].to_owned(),
            };
            dot += &format!("  n{handle} [label=\"{label}\"];\n");
            for after in &node.after {
                dot += &format!("  n{after} -> n{handle};\n");
            }
        }
        std::fs::write(path, dot + "}\n").map_err(|_| CUDA_ERROR_OPERATING_SYSTEM)
    }

    fn cuGraphInstantiate(out: *mut usize, handle: usize, error: *mut usize, _log: *mut c_char, _len: usize) {
        put_if(error, 0);
        put(out, instantiate(handle, 0)?.handle)
    }
    fn cuGraphInstantiate_v2(out: *mut usize, handle: usize, error: *mut usize, _log: *mut c_char, _len: usize) {
        put_if(error, 0);
        put(out, instantiate(handle, 0)?.handle)
    }
    fn cuGraphInstantiateWithFlags(out: *mut usize, handle: usize, flags: u64) {
        put(out, instantiate(handle, flags)?.handle)
    }
    fn cuGraphInstantiateWithParams / cuGraphInstantiateWithParams_ptsz(out: *mut usize, handle: usize, params: *mut InstantiateParams) {
        let mut p = get(params)?;
        let exec = instantiate(handle, p.flags)?;
        (p.result, p.error_node) = (0, 0);
        put(params, p)?;
        put(out, exec.handle)
    }
    fn cuGraphExecGetFlags(handle: usize, out: *mut u64) {
        put(out, exec(handle)?.flags)
    }
    fn cuGraphUpload / cuGraphUpload_ptsz(handle: usize, on: usize) {
        exec(handle)?;
        stream(on).map(drop)
    }
    fn cuGraphLaunch / cuGraphLaunch_ptsz(handle: usize, on: usize) {
        launch(handle, on)
    }
    fn cuGraphExecDestroy(handle: usize) {
        driver()?.execs.remove(handle).map(drop)
    }
    fn cuGraphExecUpdate(handle: usize, from: usize, node: *mut usize, result: *mut u32) {
        match update(handle, from)? {
            Ok(()) => put(result, 0),
            Err((why, at)) => {
                put_if(node, at);
                put_if(result, why);
                Err(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE)
            }
        }
    }
    fn cuGraphExecUpdate_v2(handle: usize, from: usize, info: *mut ExecUpdateInfo) {
        let (result, error_node, code) = match update(handle, from)? {
            Ok(()) => (0, 0, Ok(())),
            Err((why, at)) => (why, at, Err(CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE)),
        };
        put(info, ExecUpdateInfo { result, error_node, error_from_node: 0 })?;
        code
    }
    fn cuGraphExecKernelNodeSetParams(handle: usize, node: usize, p: *const KernelNodeV1) {
        set_step(handle, node, kernel_work_v1(p)?)
    }
    fn cuGraphExecKernelNodeSetParams_v2(handle: usize, node: usize, p: *const KernelNode) {
        set_step(handle, node, kernel_work(p)?)
    }
    fn cuGraphExecMemcpyNodeSetParams(handle: usize, node: usize, p: *const Memcpy3d, _ctx: usize) {
        set_step(handle, node, copy_work(p)?)
    }
    fn cuGraphExecMemsetNodeSetParams(handle: usize, node: usize, p: *const MemsetNode, _ctx: usize) {
        set_step(handle, node, fill_work(p)?)
    }
    fn cuGraphExecHostNodeSetParams(handle: usize, node: usize, p: *const HostNode) {
        set_step(handle, node, host_work(p)?)
    }
    fn cuGraphExecEventRecordNodeSetEvent(handle: usize, node: usize, event: usize) {
        set_step(handle, node, event_work(event, Work::Record)?)
    }
    fn cuGraphExecEventWaitNodeSetEvent(handle: usize, node: usize, event: usize) {
        set_step(handle, node, event_work(event, Work::Wait)?)
    }
    fn cuGraphExecNodeSetParams(handle: usize, node: usize, p: *const NodeParams) {
        set_step(handle, node, any_work(p)?)
    }
    fn cuGraphNodeSetEnabled(handle: usize, node: usize, enabled: u32) {
        let exec = exec(handle)?;
        let mut steps = lock(&exec.steps);
        let step = steps.iter_mut().find(|s| s.node == node).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        if !matches!(step.work, Work::Kernel(_) | Work::Copy(_) | Work::Fill(_)) {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        step.enabled = enabled != 0;
        Ok(())
    }
    fn cuGraphNodeGetEnabled(handle: usize, node: usize, out: *mut u32) {
        let exec = exec(handle)?;
        let steps = lock(&exec.steps);
        let step = steps.iter().find(|s| s.node == node).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        put(out, step.enabled.into())
    }

    fn cuUserObjectCreate(out: *mut usize, data: *mut c_void, function: HostFn, count: u32, flags: u32) {
        if function.is_none() || count == 0 || flags != 1 {
            return Err(CUDA_ERROR_INVALID_VALUE);
        }
        let object = driver()?.user_objects.insert(|handle| UserObject {
            handle,
            function,
            data: data as usize,
            count: Mutex::new(count),
        });
        put(out, object.handle)
    }
    fn cuUserObjectRetain(handle: usize, count: u32) {
        let object = driver()?.user_objects.get(handle)?;
        let mut n = lock(&object.count);
        *n = n.checked_add(count).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        Ok(())
    }
    fn cuUserObjectRelease(handle: usize, count: u32) {
        release_object(handle, count)
    }
    /// Flag 1 moves references of the caller to the graph instead of adding some.
    fn cuGraphRetainUserObject(handle: usize, object: usize, count: u32, flags: u32) {
        let (graph, user) = (graph(handle)?, driver()?.user_objects.get(object)?);
        if flags & 1 == 0 {
            let mut n = lock(&user.count);
            *n = n.checked_add(count).ok_or(CUDA_ERROR_INVALID_VALUE)?;
        }
        lock(&graph.nodes).objects.push((object, count));
        Ok(())
    }
    fn cuGraphReleaseUserObject(handle: usize, object: usize, count: u32) {
        let graph = graph(handle)?;
        {
            let mut nodes = lock(&graph.nodes);
            let held = nodes.objects.iter_mut().find(|(o, n)| *o == object && *n >= count);
            held.ok_or(CUDA_ERROR_INVALID_VALUE)?.1 -= count;
        }
        release_object(object, count)
    }
    fn cuDeviceGraphMemTrim(device: i32) {
        crate::state::device(device).map(drop)
    }
}

unsafe fn clear_edge_data(data: *mut u64, len: *mut usize) -> Result<()> {
    if data.is_null() {
        return Ok(());
    }
    // SAFETY: the array has as many edges as there are handles, 8 bytes each.
    unsafe {
        for i in 0..get(len)? {
            put(data.add(i), 0)?;
        }
    }
    Ok(())
}
