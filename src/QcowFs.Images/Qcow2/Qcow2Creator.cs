// Writes a new qcow2 image into an empty file.
//   [header][refcount table][refcount blocks][L1 table]( [L2 tables][data] where preallocated )
// Everything but the header is durable before the header is written, in one cluster: until then the file begins with zeros and is no
// image, so a crash leaves nothing that is half one.
using System.Text;
using QcowFs.Storage;

namespace QcowFs.Images.Qcow2;

internal static class Qcow2Creator
{
    /// <summary>QEMU's rule: the name table would leave too little room for a backing name in a smaller header cluster.</summary>
    private const int MinClusterSizeForNames = 4096;

    /// <summary>Makes the image. Faults: <see cref="ImageOptionException"/> before anything is written;
    /// <see cref="StorageException"/>.</summary>
    public static void Create(IStorage file, IStorage? dataFile, Qcow2CreateOptions options)
    {
        Layout layout = Plan(options);
        Qcow2Header header = MakeHeader(options, layout);
        byte[] cluster = new byte[header.ClusterSize];
        if (!header.TryWriteTo(cluster))
        {
            throw new ImageOptionException("cluster_size",
                $"the names do not fit into a header of {header.ClusterSize} bytes; state a larger one");
        }

        file.SetLength(layout.Clusters << options.ClusterBits);
        WriteRefcounts(file, header, layout);
        if (options.Preallocation != Preallocation.Off)
            WriteMapping(file, header, layout, dataFile is not null);
        if (dataFile is not null)
        {
            dataFile.SetLength(options.VirtualSize);
            PreallocatedSpace.Fill(dataFile, 0, options.VirtualSize, options.Preallocation);
            dataFile.Sync();
        }
        else
        {
            PreallocatedSpace.Fill(file, layout.Data << options.ClusterBits,
                (layout.Clusters - layout.Data) << options.ClusterBits, options.Preallocation);
        }

        file.Sync();
        file.Write(0, cluster);
        file.Sync();
    }

    // Places of all parts, as cluster numbers. The refcount structures count themselves, so their size is found by trying.
    private static Layout Plan(Qcow2CreateOptions options)
    {
        int clusterSize = 1 << options.ClusterBits;
        long l2Coverage = (long)clusterSize / (options.ExtendedL2 ? L2Entry.ExtendedSize : L2Entry.Size) * clusterSize;
        long l1Entries = Divide(options.VirtualSize, l2Coverage);
        if (l1Entries > Qcow2Limits.MaxL1Bytes / L1Entry.Size)
            throw new ImageOptionException("SIZE", "the disk is too large for this cluster_size; state a larger one");
        long l1 = Divide(l1Entries * L1Entry.Size, clusterSize);
        bool mapped = options.Preallocation != Preallocation.Off;
        long l2 = mapped ? l1Entries : 0;
        long data = mapped && options.DataFileName is null ? Divide(options.VirtualSize, clusterSize) : 0;
        long countsPerBlock = ((long)clusterSize << 3) >> options.RefcountOrder;
        long blocks = 1;
        long table = 1;
        while (true)
        {
            long neededBlocks = Divide(1 + table + blocks + l1 + l2 + data, countsPerBlock);
            long neededTable = Divide(neededBlocks * RefcountTableEntry.Size, clusterSize);
            if (neededBlocks <= blocks && neededTable <= table)
                break;
            blocks = Math.Max(blocks, neededBlocks);
            table = Math.Max(table, neededTable);
        }

        if (table * clusterSize > Qcow2Limits.MaxRefcountTableBytes)
            throw new ImageOptionException("SIZE", "the disk is too large to be preallocated with this cluster_size; state a larger one");
        return new Layout((int)l1Entries, (int)table, (int)blocks, (int)l1, (int)l2, data);
    }

    private static Qcow2Header MakeHeader(Qcow2CreateOptions options, Layout layout)
    {
        IncompatibleFeatures incompatible = IncompatibleFeatures.None;
        if (options.DataFileName is not null)
            incompatible |= IncompatibleFeatures.ExternalDataFile;
        if (options.CompressionType != CompressionType.Deflate)
            incompatible |= IncompatibleFeatures.CompressionType;
        if (options.ExtendedL2)
            incompatible |= IncompatibleFeatures.ExtendedL2;
        return new Qcow2Header
        {
            Version = options.Version,
            ClusterBits = options.ClusterBits,
            VirtualSize = options.VirtualSize,
            L1Size = layout.L1Entries,
            L1Offset = layout.L1Entries == 0 ? 0 : layout.L1 << options.ClusterBits,
            RefcountTableOffset = Layout.Table << options.ClusterBits,
            RefcountTableClusters = layout.TableClusters,
            HeaderLength = options.Version < 3 ? Qcow2HeaderLayout.Version2Length : Qcow2HeaderLayout.WrittenLength,
            IncompatibleFeatures = incompatible,
            CompatibleFeatures = options.LazyRefcounts ? CompatibleFeatures.LazyRefcounts : CompatibleFeatures.None,
            AutoclearFeatures = options.DataFileIsRaw ? AutoclearFeatures.RawExternalData : AutoclearFeatures.None,
            RefcountOrder = options.RefcountOrder,
            CompressionType = options.CompressionType,
            BackingName = options.BackingName,
            Extensions = MakeExtensions(options),
        };
    }

    private static List<HeaderExtension> MakeExtensions(Qcow2CreateOptions options)
    {
        List<HeaderExtension> extensions = [];
        if (options.BackingName is not null && options.BackingFormat is not null)
            extensions.Add(new HeaderExtension(HeaderExtensionType.BackingFormat, Encoding.UTF8.GetBytes(options.BackingFormat)));
        if (options.Base is { } identity)
            extensions.Add(Qcow2Overlay.MakeExtension(identity));
        if (options.DataFileName is not null)
            extensions.Add(new HeaderExtension(HeaderExtensionType.DataFileName, Encoding.UTF8.GetBytes(options.DataFileName)));
        if (options.Version >= 3 && 1 << options.ClusterBits >= MinClusterSizeForNames)
            extensions.Add(new HeaderExtension(HeaderExtensionType.FeatureNames, FeatureNameTable.ToBytes(FeatureNameTable.Written)));
        return extensions;
    }

    // Every cluster of a new image is used once.
    private static void WriteRefcounts(IStorage file, Qcow2Header header, Layout layout)
    {
        byte[] table = new byte[layout.TableClusters << header.ClusterBits];
        for (int i = 0; i < layout.BlockCount; i++)
            RefcountTableEntry.Block((layout.Blocks + i) << header.ClusterBits).WriteTo(table.AsSpan(i * RefcountTableEntry.Size));
        file.Write(header.RefcountTableOffset, table);

        byte[] block = new byte[header.ClusterSize];
        long left = layout.Clusters;
        for (int i = 0; i < layout.BlockCount; i++)
        {
            int count = (int)Math.Min(left, header.RefcountsPerBlock);
            if (i == 0 || count < header.RefcountsPerBlock)
            {
                block.AsSpan().Clear();
                for (int index = 0; index < count; index++)
                    RefcountEncoding.Set(block, index, header.RefcountOrder, 1);
            }

            file.Write((layout.Blocks + i) << header.ClusterBits, block);
            left -= count;
        }
    }

    // As QEMU does it: all clusters are mapped to data that reads as zeros; with subclusters the space is there but not yet in use.
    private static void WriteMapping(IStorage file, Qcow2Header header, Layout layout, bool isExternal)
    {
        byte[] l1 = new byte[layout.L1Entries * L1Entry.Size];
        byte[] table = new byte[header.ClusterSize];
        long clusters = Divide(header.VirtualSize, header.ClusterSize);
        for (int i = 0; i < layout.L1Entries; i++)
        {
            long tableOffset = (layout.L2 + i) << header.ClusterBits;
            L1Entry.Table(tableOffset, copied: true).WriteTo(l1.AsSpan(i * L1Entry.Size));
            table.AsSpan().Clear();
            long first = (long)i * header.L2Entries;
            for (int j = 0; j < header.L2Entries && first + j < clusters; j++)
            {
                long host = (isExternal ? first + j : layout.Data + first + j) << header.ClusterBits;
                L2Entry.Data(new HostOffset(host), copied: true).WriteTo(table.AsSpan(j * header.L2EntrySize));
            }

            file.Write(tableOffset, table);
        }

        file.Write(header.L1Offset, l1);
    }

    private static long Divide(long length, long unit) => length / unit + (length % unit == 0 ? 0 : 1);

    /// <summary>The parts of the file in their order.</summary>
    private readonly record struct Layout(
        int L1Entries, int TableClusters, int BlockCount, int L1Clusters, int L2Count, long DataClusters)
    {
        public const long Table = 1;

        public long Blocks => Table + TableClusters;

        public long L1 => Blocks + BlockCount;

        public long L2 => L1 + L1Clusters;

        public long Data => L2 + L2Count;

        public long Clusters => Data + DataClusters;
    }
}
