// The nodes that the kernel may name, and how many references it holds to each.
//
// T1. A node enters the table when it enters the tree, before the kernel can hear of it, and gets a number that is never used twice.
// T2. The kernel's count of a node grows by one with every LOOKUP reply and every READDIRPLUS entry, and falls only by FORGET.
// T3. A node leaves the table when it is no longer in the tree and the kernel's count is zero. The kernel holds a reference for
//     as long as a file is open, so an open file's node is always found.
using System.Collections.Concurrent;
using System.Diagnostics.CodeAnalysis;
using QcowFs.Fuse;

namespace QcowFs.FileSystem;

/// <summary>The table of nodes. Thread-safe; finding a node takes no lock.</summary>
internal sealed class NodeTable
{
    private sealed class Slot(Node node)
    {
        public readonly Node Node = node;
        public ulong References;
        public bool InTree = true;
    }

    private readonly ConcurrentDictionary<ulong, Slot> _slots = new();
    private readonly Lock _gate = new(); // guards the slots' members and _last
    private ulong _last;

    /// <summary>How many nodes are known.</summary>
    public int Count => _slots.Count;

    /// <summary>Adds a node; the first one is the root.</summary>
    public T Add<T>(T node)
        where T : Node
    {
        lock (_gate)
        {
            node.Assign(++_last); // T1
            _slots[_last] = new Slot(node);
        }
        return node;
    }

    /// <summary>Takes a node out of the tree; it stays known while the kernel refers to it (T3).</summary>
    public void Remove(Node node)
    {
        lock (_gate)
        {
            if (!_slots.TryGetValue(node.Number, out Slot? slot)) return;
            slot.InTree = false;
            node.LeaveTree();
            DropIfUnused(slot);
        }
    }

    /// <summary>Finds a node by the kernel's number.</summary>
    public bool TryGet(ulong number, [NotNullWhen(true)] out Node? node)
    {
        bool found = _slots.TryGetValue(number, out Slot? slot);
        node = slot?.Node;
        return found;
    }

    /// <summary>Counts one more reference of the kernel; false if the node is gone.</summary>
    public bool TryReference(ulong number)
    {
        lock (_gate)
        {
            if (!_slots.TryGetValue(number, out Slot? slot)) return false;
            slot.References++; // T2
            return true;
        }
    }

    /// <summary>How many references the kernel holds to a node.</summary>
    public ulong ReferencesTo(ulong number)
    {
        lock (_gate) return _slots.TryGetValue(number, out Slot? slot) ? slot.References : 0;
    }

    /// <summary>The kernel drops references. More than it holds is taken as all: the kernel is not ours to crash over.</summary>
    public void Forget(ulong number, ulong count)
    {
        lock (_gate)
        {
            if (!_slots.TryGetValue(number, out Slot? slot)) return;
            slot.References -= Math.Min(count, slot.References);
            DropIfUnused(slot);
        }
    }

    private void DropIfUnused(Slot slot)
    {
        if (slot is { InTree: false, References: 0 } && slot.Node.Number != IFuseFileSystem.RootNode)
            _slots.TryRemove(slot.Node.Number, out _);
    }
}
